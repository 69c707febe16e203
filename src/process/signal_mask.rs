//! Which signals are kept from a thread: the one place of the processes that takes unsafe code, as neither std nor rustix
//! changes the mask of a thread.

use std::{mem::MaybeUninit, ptr};

/// Keeps the signals that concern us from this thread, and from the threads and programs that it begins from now on: where
/// all threads do, they wait in the process, also over `execve`.
pub(super) fn hold() {
    mask(libc::SIG_BLOCK);
}

/// Takes what was held, and what comes.
pub(super) fn release() {
    mask(libc::SIG_UNBLOCK);
}

#[allow(unsafe_code, reason = "neither std nor rustix changes the mask of a thread")]
fn mask(how: libc::c_int) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` makes a set of what is there; all calls are given that set, valid numbers, and no place to write
    // to. None of them fails with these.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in OURS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut());
    }
}

/// Those of [`super::signals::Signal`].
const OURS: [libc::c_int; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2];
