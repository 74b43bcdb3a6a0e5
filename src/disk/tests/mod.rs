mod files;
mod flat;
mod grown;
mod model;
