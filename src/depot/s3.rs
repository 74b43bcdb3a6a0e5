//! A depot in object storage that speaks S3.

use std::future::Future;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use tokio::runtime::{Builder, Runtime};

use super::http::Connector;
use super::pace::Pace;
use super::store::{Object, Put, Store};
use super::{DepotError, Result};
use crate::id::Id;
use crate::progress::Progress;

/// How often a request is tried again, and for how long. The waits between grow, with jitter.
const RETRIES: usize = 8;
const RETRY_TIME: Duration = Duration::from_secs(180);
/// How often an answer is asked for that did not come whole.
const BODIES: usize = 5;

pub struct S3 {
    store: AmazonS3,
    bucket: String,
    prefix: String,
    runtime: Runtime,
    progress: Progress,
}

impl S3 {
    /// Credentials, region and endpoint are those of the AWS tools' environment variables.
    pub fn open(bucket: &str, prefix: &str, pace: Arc<Pace>, progress: &Progress) -> Result<Self> {
        let refused = |what: String| Err(DepotError::Refused(what));
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
        let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
        let mut plain = false;
        if let Some(address) = endpoint.as_ref().and_then(|url| url.strip_prefix("http://")) {
            let allowed =
                std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
            if !allowed && !is_this_host(address) {
                return refused(format!(
                    "the endpoint http://{address} would get all data unprotected: use https, or set \
                     AWS_ALLOW_HTTP=true"
                ));
            }
            plain = true;
            builder = builder.with_allow_http(true);
        }
        let connector = Connector::new(pace, plain).map_err(DepotError::Refused)?;
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: RETRY_TIME,
        };
        let store = match builder.with_retry(retry).with_http_connector(connector).build() {
            Ok(store) => store,
            Err(e) => return refused(format!("cannot use the bucket `{bucket}`: {e}")),
        };
        let mut runtime = Builder::new_multi_thread();
        let runtime = match runtime.worker_threads(2).thread_name("s3").enable_io().enable_time().build() {
            Ok(runtime) => runtime,
            Err(e) => return refused(format!("threads for the network cannot be started: {e}")),
        };
        Ok(Self { store, bucket: bucket.into(), prefix: prefix.into(), runtime, progress: progress.clone() })
    }

    fn path(&self, key: &str) -> Path {
        if self.prefix.is_empty() { Path::from(key) } else { Path::from(format!("{}/{key}", self.prefix)) }
    }

    /// Waits, but not once the work is called off.
    fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        const LOOK: Duration = Duration::from_millis(100);
        self.runtime.block_on(async {
            let mut work = std::pin::pin!(work);
            loop {
                self.progress.check()?;
                tokio::select! {
                    done = &mut work => return Ok(done),
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        })
    }

    fn failed(&self, doing: &'static str, key: &str) -> impl Fn(Error) -> DepotError {
        let object = self.shown(key);
        move |error| DepotError::Store { doing, object: object.clone(), why: told(&error) }
    }

    /// Tries again what failed or came in part. What failed on the way to an answer was tried again by
    /// the client already.
    fn stubborn<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut tries = 1;
        loop {
            match work() {
                Err(DepotError::Store { .. }) if tries < BODIES => {
                    let most = 100u64 << tries;
                    // Not all clients at the same time.
                    let dice = Id::random().map_or(0, |id| u64::from(id.as_bytes()[0]));
                    self.wait(async {
                        tokio::time::sleep(Duration::from_millis(most + most * dice / 256)).await
                    })?;
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn read(&self, key: &str, range: Option<Range<u64>>, most: u64) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        self.stubborn(|| {
            let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
            let got = self.wait(async {
                let got = self.store.get_opts(&path, options).await?;
                let len = got.range.end.saturating_sub(got.range.start);
                if len > most {
                    return Ok(Err(len));
                }
                got.bytes().await.map(Ok)
            })?;
            match got {
                Ok(Err(len)) => {
                    let what = format!("it has {len} bytes, more than the maximum of {most}");
                    Err(DepotError::damaged(self.shown(key), what))
                }
                Ok(Ok(bytes)) => match &range {
                    Some(range) if bytes.len() as u64 != range.end - range.start => Err(DepotError::damaged(
                        self.shown(key),
                        format!("{} bytes came instead of {}", bytes.len(), range.end - range.start),
                    )),
                    _ => Ok(Some(bytes.into())),
                },
                Err(Error::NotFound { .. }) => Ok(None),
                Err(e) => Err(self.failed("read", key)(e)),
            }
        })
    }
}

impl Store for S3 {
    fn put(&self, key: &str, bytes: Vec<u8>, how: Put) -> Result<bool> {
        let mode = if how == Put::New { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.wait(self.store.put_opts(&self.path(key), PutPayload::from(bytes), options))? {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) if how == Put::New => Ok(false),
            Err(e) => Err(self.failed("write", key)(e)),
        }
    }

    fn get(&self, key: &str, most: u64) -> Result<Option<Vec<u8>>> {
        self.read(key, None, most)
    }

    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        let most = range.end.saturating_sub(range.start);
        if most == 0 {
            return Ok(Some(Vec::new()));
        }
        self.read(key, Some(range), most)
    }

    fn list(&self, folder: &str) -> Result<Vec<Object>> {
        let path = self.path(folder);
        let listed = self.stubborn(|| {
            let listed = self.wait(self.store.list_with_delimiter(Some(&path)))?;
            listed.map_err(self.failed("list", folder))
        })?;
        let object = |meta: object_store::ObjectMeta| {
            let name = meta.location.filename()?.to_owned();
            Some(Object { name, bytes: meta.size, modified: meta.last_modified.into() })
        };
        Ok(listed.objects.into_iter().filter_map(object).collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        match self.wait(self.store.delete(&self.path(key)))? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("remove", key)(e)),
        }
    }

    fn shown(&self, key: &str) -> String {
        let prefix = if self.prefix.is_empty() { String::new() } else { format!("/{}", self.prefix) };
        format!("s3://{}{prefix}/{key}", self.bucket)
    }
}

/// A sentence: stores answer with pages of XML.
fn told(error: &Error) -> String {
    const MOST: usize = 200;
    let mut text = error.to_string();
    if let Some(at) = text.find("<?xml").or_else(|| text.find("<Error>")) {
        let inside = |tag: &str| {
            let from = text[at..].split_once(&format!("<{tag}>"))?.1;
            Some(from.split_once(&format!("</{tag}>"))?.0.to_owned())
        };
        let said = [inside("Code"), inside("Message")].into_iter().flatten().collect::<Vec<_>>().join(", ");
        text = format!("{}{said}", &text[..at]);
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Whether `host:port/...` is this host itself.
fn is_this_host(address: &str) -> bool {
    let host = address.split('/').next().unwrap_or_default();
    let host =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_this_host;

    #[test]
    fn only_this_host_is_spoken_to_in_the_open() {
        for here in ["localhost", "localhost:9000", "127.0.0.1:1/x", "[::1]:80", "127.1.2.3"] {
            assert!(is_this_host(here), "{here}");
        }
        for elsewhere in ["10.0.0.1:9000", "localhost.example.com", "example.com:80", "[::2]:80", ""] {
            assert!(!is_this_host(elsewhere), "{elsewhere}");
        }
    }
}
