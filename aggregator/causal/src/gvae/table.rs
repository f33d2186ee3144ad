//! A table of rows with holes.

use super::GvaeError;

/// Row-major `(rows, cols)` of `f32`; an absent value is NaN here and a mask inside the nets, never a zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    cols: usize,
    values: Vec<f32>,
}

impl Table {
    /// An empty table of `cols` columns.
    pub fn new(cols: usize) -> Self {
        Self { cols, values: Vec::new() }
    }

    /// Row by row; what does not fill a last row is cut.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn of_values(cols: usize, mut values: Vec<f32>) -> Self {
        values.truncate(values.len() / cols.max(1) * cols);
        Self { cols, values }
    }

    /// Adds a row.
    ///
    /// # Errors
    ///
    /// [`GvaeError::Shape`] when `row` is not `cols` long.
    pub fn push(&mut self, row: impl IntoIterator<Item = Option<f32>>) -> Result<(), GvaeError> {
        let before = self.values.len();
        self.values.extend(row.into_iter().map(|value| value.filter(|value| value.is_finite()).unwrap_or(f32::NAN)));
        let added = self.values.len() - before;
        if added == self.cols {
            return Ok(());
        }
        self.values.truncate(before);
        Err(GvaeError::Shape { what: "values of a row against columns", left: added, right: self.cols })
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.cols).unwrap_or(0)
    }

    /// One row; absent values are NaN.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.cols..(index + 1) * self.cols]
    }

    /// The present values of a column.
    pub(super) fn column(&self, col: usize) -> Vec<f32> {
        self.values.iter().skip(col).step_by(self.cols.max(1)).copied().filter(|value| value.is_finite()).collect()
    }
}
