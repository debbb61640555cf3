//! Memory that several threads fill: a pointer into a matrix, and values of which each thread has its part. Each writes to
//! columns, rows or a rectangle of its own; whoever starts the threads answers for that.

/// A pointer that tasks share; each writes to its own part.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut f32);

// SAFETY: it is only used to reach disjoint parts of a matrix that outlives the tasks (the `product` of either module).
#[expect(unsafe_code, reason = "a raw pointer crosses threads")]
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `offset` lies inside the matrix.
    #[expect(unsafe_code, reason = "pointer arithmetic")]
    pub unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: as promised by the caller.
        unsafe { self.0.add(offset) }
    }
}

/// Values that are written by several threads in one phase of a work, each its part, and read in later ones.
pub struct Field<T>(*mut [T]);

// SAFETY: the parts that threads write in a phase are disjoint, and a barrier lies between writing and reading; the callers
// of `part` and `all` answer for it.
#[expect(unsafe_code, reason = "a raw pointer crosses threads")]
unsafe impl<T: Send + Sync> Sync for Field<T> {}

impl<T: Copy> Field<T> {
    pub fn new(value: T, n: usize) -> Self {
        Field::of(vec![value; n])
    }

    pub fn of(values: Vec<T>) -> Self {
        Field(Box::into_raw(values.into_boxed_slice()))
    }

    /// `n` values from `from` on, to be written.
    ///
    /// # Safety
    /// No other thread reads or writes them before the next barrier.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "threads write to parts of one slice")]
    pub unsafe fn part(&self, from: usize, n: usize) -> &mut [T] {
        assert!(from <= self.0.len() && n <= self.0.len() - from, "a part lies inside the field");
        // SAFETY: the range lies inside the slice, and nobody else has it, as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast::<T>().add(from), n) }
    }

    /// All values, to be read.
    ///
    /// # Safety
    /// No thread writes to any of them before the next barrier.
    #[expect(unsafe_code, reason = "they are written through the same pointer")]
    pub unsafe fn all(&self) -> &[T] {
        // SAFETY: the pointer is a box's, and nobody writes to it, as promised by the caller.
        unsafe { &*self.0 }
    }

    /// What was written, when the threads are done.
    pub fn into_values(self) -> Vec<T> {
        let start = std::mem::ManuallyDrop::new(self).0;
        // SAFETY: the pointer is a box's, given back once, for `self` is not dropped.
        #[expect(unsafe_code, reason = "the box that it was made from")]
        let values = unsafe { Box::from_raw(start) };
        values.into_vec()
    }
}

impl<T> Drop for Field<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer is a box's, given back once.
        #[expect(unsafe_code, reason = "the box that it was made from")]
        drop(unsafe { Box::from_raw(self.0) });
    }
}
