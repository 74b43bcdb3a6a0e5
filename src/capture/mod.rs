//! Guest memory to an image and back.

pub mod guest;
pub mod image;
