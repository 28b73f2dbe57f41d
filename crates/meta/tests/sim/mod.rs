//! The parts of the simulation.
pub mod client;
pub mod engine;
pub mod store;
pub mod world;
