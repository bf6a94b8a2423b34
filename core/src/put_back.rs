//! What failed flushes have put back, in places that were made beforehand.

use crate::fork::AtFork;
use crate::memory::{OutOfMemory, boxed};

/// A place for contents. A flush makes one before it takes anything, so that it can put back
/// without memory what it could not send.
pub struct Place<C> {
    pub contents: C,
    next: Option<Box<Place<C>>>,
}

impl<C: Default> Place<C> {
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new() -> Result<Box<Self>, OutOfMemory> {
        boxed(Self { contents: C::default(), next: None })
    }
}

/// Places with contents, in the order in which they came. It needs no memory.
pub struct Queue<C>(Option<Box<Place<C>>>);

impl<C> Default for Queue<C> {
    fn default() -> Self {
        Self(None)
    }
}

impl<C> Queue<C> {
    pub fn push(&mut self, place: Box<Place<C>>) {
        let mut end = &mut self.0;
        while let Some(place) = end {
            end = &mut place.next;
        }
        *end = Some(place);
    }

    pub fn first(&mut self) -> Option<&mut C> {
        self.0.as_mut().map(|place| &mut place.contents)
    }

    pub fn pop(&mut self) -> Option<Box<Place<C>>> {
        let mut place = self.0.take()?;
        self.0 = place.next.take();
        Some(place)
    }
}

impl<C: AtFork> AtFork for Queue<C> {
    /// Each of the contents is treated as it is anywhere else, and then forgotten.
    fn after_fork_in_child(&mut self) {
        while let Some(mut place) = self.pop() {
            place.contents.after_fork_in_child();
        }
    }
}

impl<C> Drop for Queue<C> {
    /// One after the other: by default each place would drop the next one, ever deeper.
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
