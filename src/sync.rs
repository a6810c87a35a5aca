//! Locks that survive a panic in another thread.
//!
//! What our locks guard is replaced whole or not at all, so a poisoned lock
//! holds a sound value. Unwrapping it instead would turn one panic into a
//! gateway that answers nobody.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
