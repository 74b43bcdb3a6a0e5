//! Why something in an image cannot be had. The texts do not name the image: whoever opened it does.

pub type Result<T> = std::result::Result<T, ImageError>;

/// For those who name no kernel: what else can be done.
const WAY_OUT: &str = "copy kernel and initrd from the guest's /boot and boot them with --kernel, \
 --initrd and --cmdline, and the image as --disk";

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("cannot read it at byte {offset}: {error}")]
    Read { offset: u64, error: String },
    #[error("cannot read the file system on {volume}: {error}")]
    FileSystem { volume: String, error: String },
    #[error("cannot read {path} on {volume}: {error}")]
    File { volume: String, path: String, error: String },
    #[error("{path} on {volume} has {len} bytes, more than the maximum of {max}")]
    TooLarge { volume: String, path: String, len: u64, max: u64 },
    #[error("no kernel was found{because}: {WAY_OUT}")]
    NoKernel { because: String },
    #[error(
        "it contains several systems ({found}), and none is the default: `piton image show` lists what \
         can be booted, `piton image extract --entry N` copies the kernel of one, for --kernel"
    )]
    Several { found: String },
    #[error(
        "{path} on {volume}, line {line}: {what}, which piton cannot interpret without running GRUB; \
         `piton image show` lists what can be booted, `piton image extract --entry N` copies the kernel \
         of one, for --kernel"
    )]
    Maze { volume: String, path: String, line: usize, what: String },
    #[error("its default entry, `{title}`, {what}: {WAY_OUT}")]
    Unbootable { title: String, what: String },
    #[error("{0}")]
    NoDefault(String),
    #[error("it has no entry {number}: `piton image show` lists {count}")]
    NoEntry { number: usize, count: usize },
}
