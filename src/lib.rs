//! piton: a minimal hypervisor on KVM whose VMs can go back.
//!
//! A module imports only from lower levels of this table; modules of one level do not import
//! each other, and no two files import each other in a circle. `tests/layering/` holds the sources
//! against it.
//!
//! | level | module | what it is |
//! | --- | --- | --- |
//! | 10 | [`cli`] | the command line |
//! | 9 | [`manager`] | pages for a browser: a client of the sockets, a reader of the folders |
//! | 8 | [`vmm`] | owner of a running machine; one request queue |
//! | 8 | [`inside`] | commands and copies in a guest, over its agent |
//! | 8 | [`transfer`] | export, import and diff, in the process of the command |
//! | 8 | [`depot`] | checkpoints in object storage or a folder that hosts share |
//! | 8 | [`search`] | files in the disks of checkpoints, without starting anything |
//! | 7 | [`history`] | what is done to a VM's checkpoints, running or not |
//! | 6 | [`machine`] | memory, vCPUs and devices as one thing that runs or stands still |
//! | 5 | [`agent`] | talking with the guest's agent: freezing, and other calls |
//! | 5 | [`control`] | what can be asked of a running VM, and the HTTP that carries it |
//! | 4 | [`checkpoint`] | checkpoints in their folder, and the tree that they form |
//! | 4 | [`vcpu`] | one thread a vCPU |
//! | 4 | [`devices`] | what the guest sees |
//! | 4 | [`boot`] | getting a fresh machine ready to run a kernel |
//! | 3 | [`nbd`] | disks that others read over a socket |
//! | 3 | [`net`] | the host's side of a network: passt, tap devices |
//! | 3 | [`folder`] | a VM's folder, definition and lock |
//! | 3 | [`capture`] | guest memory to an image and back |
//! | 2 | [`vm`] | the KVM virtual machine |
//! | 2 | [`disk`] | disk images and chains of them |
//! | 2 | [`image`] | what is inside a disk image: partitions, file systems, kernels |
//! | 1 | [`seed`] | what cloud-init finds at a guest's first boot |
//! | 1 | [`storage`] | the one door to the file system for what must survive |
//! | 1 | [`bus`] | port and MMIO buses |
//! | 1 | [`memory`] | guest memory |
//! | 1 | [`config`] | the virtual hardware of a VM |
//! | 0 | [`layout`] | where things lie in the guest's address spaces |
//! | 0 | [`events`] | what a running machine reports |
//! | 0 | [`id`] | identities of layers and checkpoints |
//! | 0 | [`moment`] | points in time that a clock which is set does not move |
//! | 0 | [`pages`] | sets of pages of guest memory |
//! | 0 | [`progress`] | how far long work is, and calling it off |
//! | 0 | [`qga`] | calls to a guest's agent and the shapes of their answers |
//! | 0 | [`sandbox`] | which files a process can reach |
//! | 0 | [`seats`] | places for the clients of a server |
//! | 0 | [`seccomp`] | what each thread may ask of the kernel |

// Both end the process where nobody reads: `cli/out.rs` is the way out.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod agent;
pub mod boot;
pub mod bus;
pub mod capture;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod control;
pub mod depot;
pub mod devices;
pub mod disk;
pub mod events;
pub mod folder;
pub mod history;
pub mod id;
pub mod image;
pub mod inside;
pub mod layout;
pub mod machine;
pub mod manager;
pub mod memory;
pub mod moment;
pub mod nbd;
pub mod net;
pub mod pages;
pub mod progress;
pub mod qga;
pub mod sandbox;
pub mod search;
pub mod seats;
pub mod seccomp;
pub mod seed;
pub mod storage;
pub mod transfer;
pub mod vcpu;
pub mod vm;
pub mod vmm;
