//! Matrix products on row-major slices, by the `gemm` crate's kernels chosen at run time for this CPU.

use gemm::{Parallelism, gemm};

/// A row-major matrix, possibly read as its transpose.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// `values` as `(rows, cols)`.
    pub(super) fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(values.len(), rows * cols, "a view must cover its slice exactly");
        Self { values, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose of `self`.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// `dst += a b`, with `dst` row-major `(a.rows, b.cols)`.
#[expect(unsafe_code, reason = "the matrix kernel takes raw pointers")]
pub(super) fn add_product(dst: &mut [f32], a: View<'_>, b: View<'_>) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product must agree");
    assert_eq!(dst.len(), a.rows * b.cols, "the destination must have the product's shape");
    if dst.is_empty() || a.cols == 0 {
        return;
    }
    // SAFETY: every index `row * row_stride + col * col_stride` of a view lies inside its slice, because `View::new`
    // checked `rows * cols == len` and `transposed` only swaps the two axes; `dst` has `a.rows * b.cols` values and is
    // the only mutable borrow.
    unsafe {
        gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.as_mut_ptr(),
            1,
            b.cols as isize,
            true,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_match_a_case_solved_by_hand() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // (2, 3)
        let b = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]; // (3, 2)
        let mut dst = [10.0, 0.0, 0.0, 0.0];
        add_product(&mut dst, View::new(&a, 2, 3), View::new(&b, 3, 2));
        assert_eq!(dst, [14.0, 5.0, 10.0, 11.0]);

        let mut gram = [0.0; 9];
        add_product(&mut gram, View::new(&a, 2, 3).transposed(), View::new(&a, 2, 3));
        assert_eq!(gram, [17.0, 22.0, 27.0, 22.0, 29.0, 36.0, 27.0, 36.0, 45.0]);
    }
}
