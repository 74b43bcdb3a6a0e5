mod crash;
mod files;
mod model;
