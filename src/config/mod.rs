//! The only door for settings: text, raw values, [`Plan`].

mod plan;

pub use plan::*;
