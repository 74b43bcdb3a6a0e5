//! Guest memory to an image and back.

pub mod guest;
pub mod image;
pub mod live;
pub mod staging;
pub mod tracker;
