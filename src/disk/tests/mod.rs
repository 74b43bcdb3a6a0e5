mod files;
mod flat;
mod model;
