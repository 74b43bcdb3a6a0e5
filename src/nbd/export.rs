use std::sync::Arc;

use crate::disk::Backing;

/// A disk to be read, under a name.
#[derive(Clone)]
pub struct Export {
    pub name: String,
    pub description: String,
    pub disk: Arc<dyn Backing>,
}
