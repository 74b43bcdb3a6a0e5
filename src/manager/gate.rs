//! Who may ask: whoever came by a link, from a page of ours. A browser sends what any page tells it
//! to, so each request is held against its `Host` and each that changes something against its
//! `Origin`, too.

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::header::{COOKIE, HOST, ORIGIN, UPGRADE};
use axum::http::{HeaderMap, Method, StatusCode};

use crate::id::Id;

/// Browsers that are let in at one time; the one that came first goes.
const SESSIONS_MAX: usize = 64;
/// Names of this host that no other page can have.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the manager does not accept this host name: use the address that it printed, or start it with \
         --allowed-host NAME"
    )]
    Host,
    #[error("this request does not come from one of the manager's own pages")]
    Origin,
    #[error("this browser is not logged in: open the last link that `piton manager` printed")]
    NoSession,
    #[error("this link is invalid or was already used: open the last link that `piton manager` printed")]
    Link,
}

impl Refusal {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin | Self::Link => StatusCode::FORBIDDEN,
            Self::NoSession => StatusCode::UNAUTHORIZED,
        }
    }
}

pub struct Gate {
    /// Lower case, without a port.
    hosts: Vec<String>,
    cookie: String,
    keys: Mutex<Keys>,
}

struct Keys {
    /// Of the link that was not used yet.
    link: Option<String>,
    sessions: Vec<String>,
}

/// Nobody can guess it.
fn secret() -> std::io::Result<String> {
    Id::random().map(|id| id.to_string()).map_err(std::io::Error::other)
}

impl Gate {
    /// Known by the names of the loopback device and `hosts`. Cookies are the same for all ports of
    /// a host, so `mark` tells those of this manager from those of others.
    pub fn new(hosts: impl IntoIterator<Item = String>, mark: &str) -> Self {
        let hosts = LOOPBACK.into_iter().map(str::to_owned).chain(hosts);
        Self {
            hosts: hosts.map(|host| host.to_ascii_lowercase()).collect(),
            cookie: format!("piton-{mark}"),
            keys: Mutex::new(Keys { link: None, sessions: Vec::new() }),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of a new link; the one before is none any more.
    pub fn new_link(&self) -> std::io::Result<String> {
        let token = secret()?;
        self.keys().link = Some(token.clone());
        Ok(token)
    }

    /// Lets in who has the token of the link, once: the cookie for it.
    pub fn let_in(&self, token: &str) -> std::io::Result<Option<String>> {
        let session = secret()?;
        let mut keys = self.keys();
        if !keys.link.as_ref().is_some_and(|link| same(link, token)) {
            return Ok(None);
        }
        keys.link = None;
        if keys.sessions.len() >= SESSIONS_MAX {
            keys.sessions.remove(0);
        }
        keys.sessions.push(session.clone());
        Ok(Some(format!("{}={session}; Path=/; HttpOnly; SameSite=Strict", self.cookie)))
    }

    /// Whether the request was meant for us, and comes from where it may.
    pub fn check_source(&self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = single(headers, HOST.as_str()).ok_or(Refusal::Host)?;
        if !self.hosts.contains(&without_port(host).to_ascii_lowercase()) {
            return Err(Refusal::Host);
        }
        if let Some(site) = headers.get("sec-fetch-site")
            && headers.get("sec-fetch-mode").is_none_or(|mode| mode != "navigate")
            && site != "same-origin"
            && site != "none"
        {
            return Err(Refusal::Origin);
        }
        let changes = ![Method::GET, Method::HEAD].contains(method) || headers.contains_key(UPGRADE);
        match single(headers, ORIGIN.as_str()) {
            Some(origin) => {
                let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
                if authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host)) {
                    return Ok(());
                }
                Err(Refusal::Origin)
            }
            None if changes || headers.contains_key(ORIGIN) => Err(Refusal::Origin),
            None => Ok(()),
        }
    }

    /// Whether the browser was let in.
    pub fn check_session(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut cookies =
            lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let keys = self.keys();
        let known = |value: &str| keys.sessions.iter().any(|session| same(session, value));
        match cookies.any(|(name, value)| name == self.cookie && known(value)) {
            true => Ok(()),
            false => Err(Refusal::NoSession),
        }
    }
}

/// A header that must not be there twice: who reads one and who reads the other would differ.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// In a time that does not tell how much of it was right.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).fold(
            HeaderMap::new(),
            |mut all, (name, value): (axum::http::HeaderName, _)| {
                all.append(name, value);
                all
            },
        )
    }

    #[test]
    fn hosts_and_origins() {
        let gate = Gate::new(["Box.Example".to_owned()], "1");
        fn checked(gate: &Gate, method: &Method, lines: &[(&'static str, &str)]) -> Option<Refusal> {
            gate.check_source(method, &headers(lines)).err()
        }
        for host in ["127.0.0.1:8000", "localhost", "[::1]:80", "box.example", "BOX.example:9"] {
            assert_eq!(checked(&gate, &Method::GET, &[("host", host)]), None, "{host}");
            let origin = format!("http://{host}");
            assert_eq!(checked(&gate, &Method::POST, &[("host", host), ("origin", &origin)]), None, "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "x@localhost", "::1"] {
            assert_eq!(checked(&gate, &Method::GET, &[("host", host)]), Some(Refusal::Host), "{host}");
        }
        assert_eq!(checked(&gate, &Method::GET, &[]), Some(Refusal::Host));
        assert_eq!(
            checked(&gate, &Method::GET, &[("host", "localhost"), ("host", "localhost")]),
            Some(Refusal::Host)
        );
        let own = ("host", "localhost:1");
        let wrong = ["http://evil.example", "null", "http://localhost:2", "http://localhost", "localhost:1"];
        for origin in wrong {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let line = ("origin", origin);
                assert_eq!(checked(&gate, &method, &[own, line]), Some(Refusal::Origin), "{origin}");
            }
        }
        assert_eq!(checked(&gate, &Method::POST, &[own]), Some(Refusal::Origin), "none at all");
        let twice = [own, ("origin", "http://localhost:1"), ("origin", "http://localhost:1")];
        assert_eq!(checked(&gate, &Method::POST, &twice), Some(Refusal::Origin));
        assert_eq!(checked(&gate, &Method::GET, &[own, ("upgrade", "websocket")]), Some(Refusal::Origin));
        assert_eq!(
            checked(&gate, &Method::GET, &[own, ("sec-fetch-site", "cross-site")]),
            Some(Refusal::Origin)
        );
        let link = [own, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(checked(&gate, &Method::GET, &link), None, "a link may be clicked on anywhere");
    }

    #[test]
    fn a_link_lets_one_browser_in() {
        let gate = Gate::new([], "7");
        assert_eq!(gate.let_in("").unwrap(), None);
        let first = gate.new_link().unwrap();
        let second = gate.new_link().unwrap();
        assert_eq!(gate.let_in(&first).unwrap(), None, "replaced");
        assert_eq!(gate.let_in(&second[1..]).unwrap(), None);
        let cookie = gate.let_in(&second).unwrap().unwrap();
        assert!(cookie.ends_with("; HttpOnly; SameSite=Strict"), "{cookie}");
        assert_eq!(gate.let_in(&second).unwrap(), None, "used");
        let value = cookie.split(';').next().unwrap();
        let check = |line: &str| gate.check_session(&headers(&[("cookie", line)]));
        assert_eq!(check(&format!("a=b; {value}")), Ok(()));
        assert_eq!(check(&value.replace("piton-7", "piton-8")), Err(Refusal::NoSession));
        assert_eq!(check("piton-7="), Err(Refusal::NoSession));
        assert_eq!(check(&format!("piton-7={second}")), Err(Refusal::NoSession));
        assert_eq!(gate.check_session(&HeaderMap::new()), Err(Refusal::NoSession));
    }

    #[test]
    fn the_oldest_browser_makes_room() {
        let gate = Gate::new([], "7");
        let cookies: Vec<String> =
            (0..=SESSIONS_MAX).map(|_| gate.let_in(&gate.new_link().unwrap()).unwrap().unwrap()).collect();
        let known = |cookie: &str| {
            gate.check_session(&headers(&[("cookie", cookie.split(';').next().unwrap())])).is_ok()
        };
        assert!(!known(&cookies[0]) && cookies[1..].iter().all(|cookie| known(cookie)));
    }
}
