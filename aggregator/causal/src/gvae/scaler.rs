//! Robust standardisation of a table's columns.

use super::Table;

/// Standardised values are cut here: beyond it a value says "far", not how far, and one outlier cannot own the loss.
const STANDARD_MAX: f32 = 8.0;
/// The least scale of a column: logs of latency that vary less than 2 % are noise.
const SCALE_MIN: f32 = 0.02;

/// Median and scaled median absolute deviation per column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scaler {
    pub(super) location: Vec<f32>,
    pub(super) scale: Vec<f32>,
}

impl Scaler {
    /// Of a table without columns.
    pub(super) const NONE: Self = Self { location: Vec::new(), scale: Vec::new() };

    /// Fits each column of `table`; an all-absent column gets location 0 and scale 1.
    pub(super) fn fit(table: &Table) -> Self {
        let (location, scale) = (0..table.cols()).map(|col| location_and_scale(table.column(col))).unzip();
        Self { location, scale }
    }

    /// `values` of one row on the standard scale; absent becomes 0, the typical value.
    pub(super) fn standardise<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        row.iter().zip(&self.location).zip(&self.scale).map(|((value, location), scale)| {
            if value.is_finite() { ((value - location) / scale).clamp(-STANDARD_MAX, STANDARD_MAX) } else { 0.0 }
        })
    }

    /// The inverse of [`standardise`](Self::standardise) within its range.
    pub(super) fn restore(&self, standard: &[f32]) -> Vec<f32> {
        standard
            .iter()
            .zip(&self.location)
            .zip(&self.scale)
            .map(|((value, location), scale)| value * scale + location)
            .collect()
    }
}

fn location_and_scale(mut values: Vec<f32>) -> (f32, f32) {
    let Some(location) = median(&mut values) else { return (0.0, 1.0) };
    for value in &mut values {
        *value = (*value - location).abs();
    }
    // 1.4826 makes the MAD of a normal distribution its standard deviation.
    let scale = 1.4826 * median(&mut values).unwrap_or(0.0);
    (location, scale.max(SCALE_MIN))
}

fn median(values: &mut [f32]) -> Option<f32> {
    let middle = values.len().checked_sub(1)? / 2;
    Some(*values.select_nth_unstable_by(middle, f32::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outlier_does_not_move_the_scale() {
        let mut table = Table::new(1);
        for value in [1.0, 2.0, 3.0, 4.0, 1000.0] {
            table.push([Some(value)]).expect("one column");
        }
        let scaler = Scaler::fit(&table);
        assert_eq!(scaler.location, [3.0]);
        assert!((scaler.scale[0] - 1.4826).abs() < 1e-6);
        assert_eq!(scaler.standardise(&[f32::NAN]).collect::<Vec<_>>(), [0.0]);
        assert_eq!(scaler.standardise(&[1e9]).collect::<Vec<_>>(), [STANDARD_MAX]);
    }
}
