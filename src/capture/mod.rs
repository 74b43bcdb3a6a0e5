//! Guest memory to an image and back.

pub mod chain;
pub mod guest;
pub mod image;
pub mod lazy;
pub mod live;
pub mod staging;
pub mod tracker;
