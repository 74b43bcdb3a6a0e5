//! Keeps the networks of a VM plugged in: starts passt and takes tap devices for its cards, and
//! starts again what fails, less and less often.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::backend::Backend;
use super::keeper::Keeper;
use super::link::Link;
use super::tap::{self, Tap, TapError};
use super::user::{self, User, UserError};
use crate::config::{Forward, NetBackend, NetConfig};
use crate::{sandbox, seccomp};

/// Times between attempts.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What runs so long did not fail at its start.
const STEADY: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("cannot start the process that runs passt: {0}")]
    Keeper(std::io::Error),
    #[error("cannot start the network thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot set up the network: {0}")]
    Failed(String),
    #[error("{0}")]
    Refused(String),
    #[error(
        "this VM was started without a network, so one can only be set up while it is stopped: stop it \
         first with `piton stop`"
    )]
    TooLate,
}

enum Order {
    /// Cards of a machine, in place of all others.
    Attach(Vec<Arc<Link>>, Vec<NetConfig>, Vec<Forward>, Option<Sender<Result<(), SetupError>>>),
    Forwards(Vec<Forward>, Sender<Result<(), SetupError>>),
    Reserve(Vec<NetConfig>, Sender<Result<(), SetupError>>),
    Lost {
        network: usize,
        /// Which of the back-ends it was.
        serial: u64,
        why: String,
    },
    End,
}

/// What becomes of a network while the VM runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Its link is down; the text says why.
    Down(String),
    /// It is up again.
    Up(String),
}

/// To be told of it; must not block.
pub type Listener = Box<dyn Fn(News) + Send>;

/// The networks of a VM, as its owner has them.
pub struct Network {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    /// Takes what can be had at once. `keeper` runs [`super::keeper::run`].
    pub fn start(nets: &[NetConfig], keeper: Command, listener: Listener) -> Result<Self, SetupError> {
        let passt = user::find_passt(std::env::var_os("PATH").as_deref());
        if nets.iter().any(NetConfig::is_user) && passt.is_err() {
            passt?;
            return Err(UserError::Missing.into());
        }
        let mut taps = BTreeMap::new();
        for name in nets.iter().filter_map(NetConfig::tap) {
            taps.insert(name.to_owned(), tap::open(name)?);
        }
        let (orders, queue) = channel();
        let own_orders = orders.clone();
        let passt = passt.ok();
        let begin = move || {
            // Beside all else that a start does. The keeper comes first: from then on this thread
            // may start no program, and what passt does to its namespaces would be refused.
            let keeper = passt.is_some().then(|| Keeper::spawn(keeper)).transpose();
            let keeper = keeper.unwrap_or_else(|e| {
                log::error!("{}", SetupError::Keeper(e));
                None
            });
            sandbox::enter_thread();
            seccomp::confine(seccomp::Thread::Network);
            let supervisor = Supervisor {
                orders: own_orders,
                keeper,
                passt,
                taps,
                forwards: Vec::new(),
                cards: Vec::new(),
                serial: 0,
                listener,
            };
            supervisor.serve(&queue);
        };
        let thread = std::thread::Builder::new().name("network".into()).spawn(begin);
        Ok(Self { orders, thread: Some(thread.map_err(SetupError::Thread)?) })
    }

    /// Plugs these cards in, in place of any others, whose machine must be gone.
    pub fn attach(&self, links: Vec<Arc<Link>>, nets: Vec<NetConfig>, forwards: Vec<Forward>) {
        let _ = self.orders.send(Order::Attach(links, nets, forwards, None));
    }

    /// [`Self::attach`], until all of them are plugged in.
    pub fn attach_all(
        &self,
        links: Vec<Arc<Link>>,
        nets: Vec<NetConfig>,
        forwards: Vec<Forward>,
    ) -> Result<(), SetupError> {
        self.ask(|reply| Order::Attach(links, nets, forwards, Some(reply)))
    }

    /// Other forwards from now on. If they cannot be, the former ones are there again.
    pub fn set_forwards(&self, forwards: Vec<Forward>) -> Result<(), SetupError> {
        self.ask(|reply| Order::Forwards(forwards, reply))
    }

    /// Takes what these networks need, for [`Self::attach`] soon; what was taken before and is
    /// neither used nor wanted is given back.
    pub fn reserve(&self, nets: Vec<NetConfig>) -> Result<(), SetupError> {
        self.ask(|reply| Order::Reserve(nets, reply))
    }

    fn ask(&self, order: impl FnOnce(Sender<Result<(), SetupError>>) -> Order) -> Result<(), SetupError> {
        let (reply, answer) = channel();
        let _ = self.orders.send(order(reply));
        let gone = |_| SetupError::Failed("its thread has exited".into());
        answer.recv().map_err(gone)?
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A card, and how its back-end does.
struct Card {
    link: Arc<Link>,
    net: NetConfig,
    serial: u64,
    since: Instant,
    wait: Duration,
    /// When it is to be plugged in again.
    due: Option<Instant>,
}

fn lost(error: std::io::Error) -> SetupError {
    SetupError::Failed(format!("lost contact with the process that runs passt: {error}"))
}

struct Supervisor {
    orders: Sender<Order>,
    keeper: Option<Keeper>,
    passt: Option<PathBuf>,
    /// Tap devices that were taken; a device that was made for this VM is there as long as they are.
    taps: BTreeMap<String, File>,
    forwards: Vec<Forward>,
    cards: Vec<Card>,
    serial: u64,
    listener: Listener,
}

impl Supervisor {
    fn serve(mut self, queue: &Receiver<Order>) {
        loop {
            let due = self.cards.iter().filter_map(|card| card.due).min();
            let order = match due {
                Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => queue.recv().map_err(RecvTimeoutError::from),
            };
            match order {
                Ok(Order::Attach(links, nets, forwards, reply)) => {
                    let result = self.attach(links, nets, forwards);
                    if let Some(reply) = reply {
                        let _ = reply.send(result);
                    }
                }
                Ok(Order::Forwards(forwards, reply)) => {
                    let _ = reply.send(self.set_forwards(forwards));
                }
                Ok(Order::Reserve(nets, reply)) => {
                    let _ = reply.send(self.reserve(&nets));
                }
                Ok(Order::Lost { network, serial, why }) => self.lost(network, serial, &why),
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => self.plug_due(),
            }
        }
        self.cards.iter().for_each(|card| card.link.unplug());
        if let Some(keeper) = self.keeper {
            keeper.end();
        }
    }

    fn attach(
        &mut self,
        links: Vec<Arc<Link>>,
        nets: Vec<NetConfig>,
        forwards: Vec<Forward>,
    ) -> Result<(), SetupError> {
        self.cards.iter().for_each(|card| card.link.unplug());
        self.taps.retain(|name, _| nets.iter().any(|net| net.tap() == Some(name)));
        self.forwards = forwards;
        let now = Instant::now();
        let card = |(link, net)| Card { link, net, serial: 0, since: now, wait: FIRST_WAIT, due: None };
        self.cards = links.into_iter().zip(nets).map(card).collect();
        let results: Vec<_> = (0..self.cards.len()).map(|network| self.plug(network)).collect();
        results.into_iter().collect::<Result<(), String>>().map_err(SetupError::Failed)
    }

    fn reserve(&mut self, nets: &[NetConfig]) -> Result<(), SetupError> {
        let cards = self.cards.iter().map(|card| &card.net);
        let wanted: Vec<&str> = cards.chain(nets).filter_map(NetConfig::tap).collect();
        self.taps.retain(|name, _| wanted.contains(&name.as_str()));
        if nets.iter().any(NetConfig::is_user) && self.passt.is_none() {
            return Err(UserError::Missing.into());
        }
        for name in nets.iter().filter_map(NetConfig::tap) {
            if !self.taps.contains_key(name) {
                self.taps.insert(name.to_owned(), tap::open(name)?);
            }
        }
        Ok(())
    }

    fn set_forwards(&mut self, forwards: Vec<Forward>) -> Result<(), SetupError> {
        let Some(network) = self.first_user() else { return Ok(()) };
        // Those that lead here already are taken, by ourselves.
        let leads = |one: &Forward| self.forwards.iter().any(|other| other.same_port(one));
        let fresh: Vec<Forward> = forwards.iter().filter(|one| !leads(one)).copied().collect();
        if let Some(keeper) = &mut self.keeper {
            keeper.check(&fresh).map_err(lost)?.map_err(SetupError::Refused)?;
        }
        let former = std::mem::replace(&mut self.forwards, forwards);
        if let Some(card) = self.cards.get(network) {
            card.link.unplug();
        }
        self.plug(network).map_err(|why| {
            self.forwards = former;
            let _ = self.plug(network);
            SetupError::Failed(why)
        })
    }

    /// The forwards are those of the first card that can have any.
    fn first_user(&self) -> Option<usize> {
        self.cards.iter().position(|card| card.net.is_user())
    }

    fn lost(&mut self, network: usize, serial: u64, why: &str) {
        let Some(card) = self.cards.get_mut(network).filter(|card| card.serial == serial) else { return };
        if card.since.elapsed() >= STEADY {
            card.wait = FIRST_WAIT;
        }
        let backend = &card.net.backend;
        log::warn!("the network {backend} of this VM failed ({why}): its link is down until it is back");
        (self.listener)(News::Down(format!("network {network} ({backend}) failed: {why}")));
        card.due = Some(Instant::now() + card.wait);
    }

    fn plug_due(&mut self) {
        let now = Instant::now();
        for network in 0..self.cards.len() {
            if self.cards.get(network).is_some_and(|card| card.due.is_some_and(|due| due <= now))
                && self.plug(network).is_ok()
            {
                log::info!("network {network} of this VM is back");
                (self.listener)(News::Up(format!("network {network} is back")));
            }
        }
    }

    /// Gives a card a fresh back-end; if there is none to be had, later.
    fn plug(&mut self, network: usize) -> Result<(), String> {
        let Some(card) = self.cards.get(network) else { return Ok(()) };
        let (link, net) = (card.link.clone(), card.net.clone());
        let backend = match &net.backend {
            NetBackend::None => return Ok(()),
            NetBackend::User => self.start_passt(network, &net),
            NetBackend::Tap(name) => self.take_tap(name),
        };
        let Some(card) = self.cards.get_mut(network) else { return Ok(()) };
        match backend {
            Ok(backend) => {
                self.serial += 1;
                (card.serial, card.since, card.due) = (self.serial, Instant::now(), None);
                card.wait = (card.wait * 2).min(LONGEST_WAIT);
                let (orders, serial) = (self.orders.clone(), self.serial);
                link.plug(
                    backend,
                    Box::new(move |lost| {
                        // After the VM's end nobody needs to know.
                        let _ = orders.send(Order::Lost { network, serial, why: lost.0 });
                    }),
                );
                Ok(())
            }
            Err(why) => {
                log::warn!("the link of network {network} is down: {why}");
                // It is said once, and not at every try.
                if card.due.is_none() {
                    (self.listener)(News::Down(format!("network {network} is down: {why}")));
                }
                card.due = Some(Instant::now() + card.wait);
                card.wait = (card.wait * 2).min(LONGEST_WAIT);
                Err(why)
            }
        }
    }

    fn start_passt(&mut self, network: usize, net: &NetConfig) -> Result<Box<dyn Backend>, String> {
        let forwards = if self.first_user() == Some(network) { self.forwards.clone() } else { Vec::new() };
        let (Some(keeper), Some(passt)) = (&mut self.keeper, &self.passt) else {
            return Err(UserError::Missing.to_string());
        };
        let mut start = |offline| -> std::io::Result<Result<UnixStream, String>> {
            let (ours, theirs) = UnixStream::pair()?;
            let args = user::arguments(net, &forwards, offline);
            Ok(keeper.start(network, passt.clone(), args, &theirs)?.map(|()| ours))
        };
        let failed = |e| lost(e).to_string();
        let mut started = start(false).map_err(failed)?;
        if started.as_ref().is_err_and(|said| user::is_offline(said)) {
            started = start(true).map_err(failed)?;
        }
        let socket = started.map_err(|said| user::explain(&said))?;
        let backend = User::new(socket, net.isolated).map_err(|e| e.to_string())?;
        Ok(Box::new(backend))
    }

    fn take_tap(&mut self, name: &str) -> Result<Box<dyn Backend>, String> {
        let file = match self.taps.get(name) {
            Some(file) => file.try_clone().map_err(|e| e.to_string())?,
            None => {
                let file = tap::open(name).map_err(|e| e.to_string())?;
                let kept = file.try_clone().map_err(|e| e.to_string())?;
                self.taps.insert(name.to_owned(), kept);
                file
            }
        };
        Ok(Box::new(Tap::new(file)))
    }
}
