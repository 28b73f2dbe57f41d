//! The mount client: the data path of files, the VFS and its FUSE face.

pub mod data;
