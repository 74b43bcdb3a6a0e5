mod files;
mod model;
