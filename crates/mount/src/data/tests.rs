//! Behaviours of the data path as a whole.
