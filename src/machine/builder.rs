//! Building a machine from its definition. `assemble` makes what every machine has; a boot then
//! puts a kernel into it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::EventFd;

use super::event_loop::{EventLoop, OnEvent};
use super::{AgentLine, Card, Machine, MachineDisk, MachineError, MachineState};
use crate::boot::{self, Initrd, Kernel, Payload};
use crate::bus::Bus;
use crate::capture::tracker::Tracker;
use crate::config::{MIN_MEMORY, NetConfig, VmConfig};
use crate::devices::console::Console;
use crate::devices::genid;
use crate::devices::i8042::I8042;
use crate::devices::power::Power;
use crate::devices::serial::Serial;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::Console as AgentConsole;
use crate::devices::virtio::console_port::Port;
use crate::devices::virtio::counts::AllDiskCounts;
use crate::devices::virtio::mmio::{DOORBELL, SaveTransport, Transport};
use crate::devices::virtio::net::{self, Net};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::host::Host;
use crate::devices::virtio::vsock::{self, Vsock};
use crate::devices::virtio::{Backend, Device, Worker};
use crate::events::{EventSink, MachineEvent};
use crate::id::Id;
use crate::image;
use crate::layout::{
    COM1_GSI, COM1_PORT, COM1_PORTS, GED_GSI, I8042_PORT, I8042_PORTS, POWER_PORT, POWER_PORTS, VIRTIO_GSIS,
    VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START,
};
use crate::memory::{self, GuestMemory};
use crate::net::Link;
use crate::vcpu::{self, Vcpu, Wiring};
use crate::vm::{Clock, DirtyLog, RestoredClock, Vm, VmError, open_kvm};

/// What a machine is made of beside its definition.
pub struct Parts {
    pub disks: Vec<MachineDisk>,
    pub nets: Vec<NetConfig>,
    /// Where programs of the host meet those of the guest.
    pub vsock: Option<Arc<Host>>,
    pub console: Arc<Console>,
    pub events: EventSink,
    /// The VM generation id.
    pub generation: Id,
    /// The guest to boot when the definition names no kernel.
    pub bundled: &'static [u8],
    /// What was found on the disk that is booted from, if that is so.
    pub found: Option<image::Payload>,
    /// Where the guest's requests are counted.
    pub counts: AllDiskCounts,
}

/// A machine whose vCPUs have no state yet.
struct Assembled {
    vm: Vm,
    vcpus: Vec<VcpuFd>,
    wiring: Wiring,
    virtio: Vec<(u64, u32)>,
    blocks: Vec<Arc<Backend<Block>>>,
    rng: Arc<Backend<Rng>>,
    agent: AgentLine,
    cards: Vec<Card>,
    vsock: Option<Arc<Backend<Vsock>>>,
    workers: Vec<Worker>,
    transports: Vec<Arc<dyn SaveTransport>>,
    serial: Arc<Serial>,
    console_input: EventFd,
    power: Arc<Power>,
    event_loop: EventLoop,
}

/// A machine about to run its kernel's first instruction.
pub fn boot(config: &VmConfig, mut parts: Parts) -> Result<Machine, MachineError> {
    let found = parts.found.take();
    let kernel = match (&found, &config.kernel) {
        (Some(found), _) => Kernel::Found { name: Path::new(&found.kernel_path), bytes: &found.kernel },
        (None, Some(path)) => Kernel::File(path),
        (None, None) => Kernel::Bundled(parts.bundled),
    };
    let initrd = match &found {
        Some(found) => {
            let name = Path::new(&found.initrd_path);
            found.initrd.as_deref().map(|bytes| Initrd::Found { name, bytes })
        }
        None => config.initrd.as_deref().map(Initrd::File),
    };
    let cmdline = match &found {
        Some(found) => format!("{} {}", found.cmdline, config.cmdline),
        None => config.cmdline.clone(),
    };
    let kvm = open_kvm()?;
    let memory = memory::allocate(config.memory)?;
    let generation = parts.generation;
    let vm = Vm::new(kvm, memory, config.cpus, DirtyLog::Later)?;
    let vcpus = (0..config.cpus).map(|index| vm.create_vcpu(index)).collect::<Result<_, _>>()?;
    let assembled = assemble(vm, vcpus, parts)?;
    let payload =
        Payload { kernel, initrd, cmdline: cmdline.trim_end(), cpus: config.cpus, virtio: &assembled.virtio };
    let memory = assembled.vm.memory();
    let entry = boot::load(memory, &payload)?;
    genid::write(memory, generation)?;
    let supported = assembled.vm.supported_cpuid()?;
    for (index, fd) in (0..).zip(&assembled.vcpus) {
        let cpuid = boot::cpuid::for_vcpu(&supported, index, config.cpus)
            .map_err(VmError::kvm("accept this many CPU features"))?;
        boot::set_up_vcpu(fd, memory, index, &cpuid, entry)?;
    }
    assembled.start_threads()
}

/// What a restored machine is made in: fresh memory, and KVM's side of it.
pub struct BareMachine {
    pub vm: Vm,
    vcpus: Vec<FreshVcpu>,
}

/// With the features that a guest could be given here.
struct FreshVcpu {
    fd: VcpuFd,
    features: CpuId,
}

pub fn bare(config: &VmConfig) -> Result<BareMachine, MachineError> {
    let memory = memory::allocate(config.memory)?;
    let vm = Vm::new(open_kvm()?, memory, config.cpus, DirtyLog::FromTheStart)?;
    Ok(BareMachine { vcpus: fresh_vcpus(&vm, config)?, vm })
}

fn fresh_vcpus(vm: &Vm, config: &VmConfig) -> Result<Vec<FreshVcpu>, MachineError> {
    let supported = vm.supported_cpuid()?;
    let fresh = |index| {
        let fd = vm.create_vcpu(index)?;
        // What a fresh vCPU is given can be more than KVM lists: where CPUID cannot be intercepted,
        // KVM adds what the guest sees anyway.
        let features = boot::cpuid::for_vcpu(&supported, index, config.cpus)
            .and_then(|cpuid| fd.set_cpuid2(&cpuid))
            .and_then(|()| fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES))
            .map_err(VmError::kvm("read a vCPU's features"))?;
        Ok(FreshVcpu { fd, features })
    };
    (0..config.cpus).map(fresh).collect()
}

/// A machine that goes on where checkpoint `id` was captured, in a [`bare`] one whose memory holds
/// what its did. Its guest is told that it is of another generation now.
pub fn restore(
    id: Id,
    bare: BareMachine,
    state: &MachineState,
    clock: Clock,
    parts: Parts,
) -> Result<Machine, MachineError> {
    let misfit = |what: String| MachineError::Misfit(what);
    let generation = parts.generation;
    let lacks = lacking(&bare.vcpus, state);
    let vcpus = bare.vcpus.into_iter().map(|vcpu| vcpu.fd).collect();
    let assembled = assemble(bare.vm, vcpus, parts)?;
    if state.vcpus.len() != assembled.vcpus.len() || state.virtio.len() != assembled.transports.len() {
        return Err(misfit(format!(
            "it has {} vCPUs and {} devices, but the VM has {} and {}",
            state.vcpus.len(),
            state.virtio.len(),
            assembled.vcpus.len(),
            assembled.transports.len()
        )));
    }
    if !lacks.is_empty() {
        let lacks = lacks.join(", ");
        return Err(misfit(format!("this host's processor lacks features that the guest uses ({lacks})")));
    }
    let clock = RestoredClock::new(state.vm.clock, clock)?;
    assembled.vm.restore(&state.vm)?;
    for (fd, saved) in assembled.vcpus.iter().zip(&state.vcpus) {
        vcpu::state::restore(fd, saved)?;
    }
    for (transport, saved) in assembled.transports.iter().zip(&state.virtio) {
        transport.restore(saved).map_err(|e| misfit(e.to_string()))?;
    }
    assembled.agent.device.lock().device.restore(&state.agent);
    for (card, saved) in assembled.cards.iter().zip(&state.nets) {
        card.device.lock().device.restore(saved.clone());
        // The link is down, which its driver does not know.
        card.device.owe_config();
    }
    if let (Some(device), Some(saved)) = (&assembled.vsock, state.vsock) {
        device.lock().device.restore(saved);
    }
    assembled.serial.restore(&state.serial).map_err(|e| misfit(e.to_string()))?;
    assembled.power.restore(state.power_events);
    let machine = Machine { clock: Some(clock), ..assembled.start_threads()? };
    machine.tracker().lock().unwrap_or_else(PoisonError::into_inner).start_from(id);
    // From here on it differs from the checkpoint.
    genid::write(machine.vm.memory(), generation)?;
    machine.power.note_generation();
    Ok(machine)
}

/// The features of the first vCPU that lacks any.
fn lacking(vcpus: &[FreshVcpu], state: &MachineState) -> Vec<String> {
    let each = vcpus.iter().zip(&state.vcpus);
    let mut each = each.map(|(fresh, saved)| boot::cpuid::missing(&saved.cpuid, &fresh.features));
    each.find(|lacking| !lacking.is_empty()).unwrap_or_default()
}

/// What this host's processor lacks of what the guest of a saved state uses.
pub fn missing_features(config: &VmConfig, state: &MachineState) -> Result<Vec<String>, MachineError> {
    // The smallest memory does: no guest runs in it.
    let vm = Vm::new(open_kvm()?, memory::allocate(MIN_MEMORY)?, config.cpus, DirtyLog::Later)?;
    Ok(lacking(&fresh_vcpus(&vm, config)?, state))
}

impl Assembled {
    fn start_threads(self) -> Result<Machine, MachineError> {
        let vcpus = (0..)
            .zip(self.vcpus)
            .map(|(index, fd)| Vcpu::spawn(index, fd, self.wiring.clone()))
            .collect::<Result<_, _>>()?;
        let vm = Arc::new(self.vm);
        Ok(Machine {
            vcpus,
            _event_loop: self.event_loop,
            _workers: self.workers,
            blocks: self.blocks,
            rng: self.rng,
            agent: self.agent,
            cards: self.cards,
            vsock: self.vsock,
            transports: self.transports,
            serial: self.serial,
            console_input: self.console_input,
            power: self.power,
            tracker: Arc::new(Mutex::new(Tracker::new(vm.clone()))),
            vm,
            clock: None,
            running: false,
        })
    }
}

fn event() -> Result<EventFd, MachineError> {
    EventFd::new(libc::EFD_NONBLOCK).map_err(MachineError::setup("an event"))
}

fn assemble(vm: Vm, vcpus: Vec<VcpuFd>, parts: Parts) -> Result<Assembled, MachineError> {
    let mut ports = Bus::default();
    let mut subscribers = Vec::new();

    let serial_irq = interrupt(&vm, COM1_GSI)?;
    let serial = Arc::new(Serial::new(serial_irq, parts.console.clone()));
    ports.insert(COM1_PORT, COM1_PORTS, serial.clone())?;
    let console_input = event()?;
    let input = console_input.try_clone().map_err(MachineError::setup("the console"))?;
    let fed = serial.clone();
    subscribers.push(OnEvent::new(input, move || fed.feed()));

    ports.insert(I8042_PORT, I8042_PORTS, Arc::new(I8042::new(parts.events.clone())))?;
    let power = Arc::new(Power::new(parts.events.clone(), interrupt(&vm, GED_GSI)?));
    ports.insert(POWER_PORT, POWER_PORTS, power.clone())?;

    let mut slots = VirtioSlots { vm: &vm, mmio: Bus::default(), used: Vec::new(), transports: Vec::new() };
    let mut blocks = Vec::new();
    let mut workers = Vec::new();
    for MachineDisk { id, disk } in parts.disks {
        let (name, counts) = (format!("disk {id}"), parts.counts.of(&id));
        let backend = slots.plug(Block::new(id, disk, parts.events.clone()).counting(counts))?;
        workers.push(Worker::spawn(name, backend.clone()).map_err(MachineError::setup("a disk's thread"))?);
        blocks.push(backend);
    }
    let rng = slots.plug(Rng)?;
    let served = rng.clone();
    let doorbell = rng.doorbell.try_clone().map_err(MachineError::setup("an event"))?;
    subscribers.push(OnEvent::new(doorbell, move || {
        served.serve();
    }));

    let agent = plug_agent(&mut slots, &mut subscribers, &parts.events)?;

    let mut cards = Vec::new();
    for (index, net) in parts.nets.into_iter().enumerate() {
        let (card, worker) = plug_card(&mut slots, index, net)?;
        cards.push(card);
        workers.push(worker);
    }
    let mut vsock = None;
    if let Some(host) = parts.vsock {
        let (device, worker) = plug_vsock(&mut slots, host)?;
        vsock = Some(device);
        workers.push(worker);
    }

    let VirtioSlots { mmio, used: virtio, transports, .. } = slots;
    let event_loop = EventLoop::start(subscribers).map_err(MachineError::setup("the device loop"))?;
    let wiring = Wiring { ports: Arc::new(ports), mmio: Arc::new(mmio), events: parts.events };
    Ok(Assembled {
        vm,
        vcpus,
        wiring,
        virtio,
        blocks,
        rng,
        agent,
        cards,
        vsock,
        workers,
        transports,
        serial,
        console_input,
        power,
        event_loop,
    })
}

fn plug_agent(
    slots: &mut VirtioSlots,
    subscribers: &mut Vec<OnEvent>,
    events: &EventSink,
) -> Result<AgentLine, MachineError> {
    let port = Arc::new(Port::default());
    port.set_still(true);
    let device = slots.plug(AgentConsole::new(port.clone()))?;
    let doorbell = || device.doorbell.try_clone().map_err(MachineError::setup("an event"));
    let events = events.clone();
    port.connect(doorbell()?, Box::new(move || events(MachineEvent::AgentBack)));
    let served = device.clone();
    subscribers.push(OnEvent::new(doorbell()?, move || {
        served.serve();
    }));
    Ok(AgentLine { device, port })
}

fn plug_card(slots: &mut VirtioSlots, index: usize, net: NetConfig) -> Result<(Card, Worker), MachineError> {
    let link = Arc::new(Link::new().map_err(MachineError::setup("a network card"))?);
    let device = slots.plug(Net::new(net, link.clone()))?;
    let worker = net::spawn(format!("net {index}"), device.clone(), link.clone())
        .map_err(MachineError::setup("a network card's thread"))?;
    Ok((Card { device, link }, worker))
}

fn plug_vsock(
    slots: &mut VirtioSlots,
    host: Arc<Host>,
) -> Result<(Arc<Backend<Vsock>>, Worker), MachineError> {
    let epoll = Arc::new(Epoll::new().map_err(MachineError::setup("the vsock device"))?);
    let device = Vsock::new(host, epoll.clone()).map_err(MachineError::setup("the vsock device"))?;
    let device = slots.plug(device)?;
    let worker =
        vsock::spawn(device.clone(), epoll).map_err(MachineError::setup("the vsock device's thread"))?;
    Ok((device, worker))
}

fn interrupt(vm: &Vm, gsi: u32) -> Result<EventFd, MachineError> {
    let irq = event()?;
    vm.connect_irq(&irq, gsi)?;
    Ok(irq)
}

/// Hands out addresses and interrupts to virtio devices, in order.
struct VirtioSlots<'a> {
    vm: &'a Vm,
    mmio: Bus,
    used: Vec<(u64, u32)>,
    transports: Vec<Arc<dyn SaveTransport>>,
}

impl VirtioSlots<'_> {
    fn plug<D: Device>(&mut self, device: D) -> Result<Arc<Backend<D>>, MachineError> {
        let memory: &GuestMemory = self.vm.memory();
        let slot = self.used.len();
        let (Some(&gsi), address) =
            (VIRTIO_GSIS.get(slot), VIRTIO_MMIO_START + slot as u64 * VIRTIO_MMIO_SIZE)
        else {
            let full = std::io::Error::other("all slots are taken");
            return Err(MachineError::Setup { what: "a virtio device", error: full });
        };
        let queues = device.queue_sizes().len() as u32;
        let backend = Backend::new(device, memory.clone(), interrupt(self.vm, gsi)?)
            .map_err(MachineError::setup("a virtio device"))?;
        let backend = Arc::new(backend);
        for queue in 0..queues {
            self.vm.connect_doorbell(&backend.doorbell, address + DOORBELL, queue)?;
        }
        let transport = Arc::new(Transport::new(backend.clone(), memory.clone()));
        self.mmio.insert(address, VIRTIO_MMIO_SIZE, transport.clone())?;
        self.transports.push(transport);
        self.used.push((address, gsi));
        Ok(backend)
    }
}
