//! Sums in several lanes: a single running sum waits for each addition before the next, and a compiler may not reorder
//! floating-point sums by itself.

/// Running sums kept side by side: two vectors of the smallest machine we run on.
const LANES: usize = 8;

/// The sum of `values`.
pub(super) fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// The sum of the products of `a` and `b`, which are equally long.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len(), "vectors of a product must be equally long");
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        lanes.iter_mut().zip(a).zip(b).for_each(|((lane, a), b)| *lane += a * b);
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_once_however_many_there_are() {
        for count in 0..40 {
            let values: Vec<f32> = (0..count).map(|value| value as f32).collect();
            let squares: f32 = values.iter().map(|value| value * value).sum();
            assert_eq!((sum(&values), dot(&values, &values)), (values.iter().sum(), squares), "{count}");
        }
    }
}
