//! Files the application has us send: `X-Sendfile` (Apache) and `X-Accel-Redirect` (nginx).
//!
//! From a path in a response header to the response with the file: [`Roots`] says which files may be sent and opens
//! them, [`send`] answers conditions and ranges. Reading the file is left to [`crate::http::FileBody`], compressing it
//! to [`crate::http::compress`].

mod denied;
mod offload;
mod precondition;
mod range;
mod roots;

pub use denied::Denied;
pub use offload::{Offload, Target, send, take_offload};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use range::{Selection, select};
pub use roots::{FileError, MissingRoot, OpenFile, Roots, RootsError};
