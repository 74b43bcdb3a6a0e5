//! The devices as a driver sees them: registers, rings in guest memory, interrupts.

mod block;
mod console;
mod disk;
mod driver;
mod hostile;
mod huge;
mod jam;
mod life;
mod net;
mod transport;
mod vsock;
