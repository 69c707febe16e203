//! Passwords: files of users, and how what a client says is held against them.
//!
//! A hash that takes long to guess takes long to check, too, so a check is work that strangers can have us do. [`Verifier`]
//! bounds it: it is done away from the threads that carry traffic, few at a time, and a password that was right is known
//! for a while. Who has to have one, and what becomes of those who have none, is [`crate::service`]'s business.

mod users;
mod verifier;

pub use self::{
    users::{Hash, UserFault, Users},
    verifier::{Verdict, Verifier},
};
