//! A pointer into a matrix that several threads fill. Each writes to columns or to a rectangle of its own; whoever starts the
//! threads answers for that.

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
