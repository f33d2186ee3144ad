//! Which rows an epoch of a net visits: the rare ones more often, the old ones beside the new.

/// Share of an epoch that windows which missed the target are brought to: the study's.
const VIOLATED_SHARE: f64 = 1.0 / 3.0;

/// A row is visited at most this often in one epoch: beyond it the net learns the row, not the world.
const VISITS_MAX: usize = 8;

/// Old rows beside the new ones at least, so that a few new ones do not make a net forget.
const OLD_MIN: usize = 64;

/// Every row once; those marked `is_rare` so often that they are a third of the epoch, at most [`VISITS_MAX`] times each.
///
/// Source: Sage (ASPLOS'21), section 4.2: "the Data Streamer oversamples the minority class".
pub fn balanced(is_rare: &[bool]) -> Vec<usize> {
    let rare = is_rare.iter().filter(|flag| **flag).count();
    let common = is_rare.len() - rare;
    let wanted = VIOLATED_SHARE / (1.0 - VIOLATED_SHARE) * common as f64;
    let visits = if rare == 0 { 1 } else { ((wanted / rare as f64).round() as usize).clamp(1, VISITS_MAX) };
    let repeat = |(row, is_rare): (usize, &bool)| std::iter::repeat_n(row, if *is_rare { visits } else { 1 });
    is_rare.iter().enumerate().flat_map(repeat).collect()
}

/// All rows from `first_new` on, and as many older ones (at least [`OLD_MIN`]), evenly chosen: training on the new alone
/// would make a net forget what it knew.
///
/// Source: Sage (ASPLOS'21), section 4.2: "we interleave the current and previous data in the training batches".
pub fn interleaved(rows: usize, first_new: usize) -> Vec<usize> {
    let old = first_new.min(rows);
    let kept = (rows - old).max(OLD_MIN).min(old);
    (0..kept).map(|place| place * old / kept).chain(old..rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_missed_the_target_are_a_third_of_an_epoch() {
        let flags: Vec<bool> = (0..120).map(|row| row % 10 == 3).collect();
        let order = balanced(&flags);
        let rare = order.iter().filter(|row| flags[**row]).count() as f64;
        assert!((rare / order.len() as f64 - VIOLATED_SHARE).abs() < 0.05, "{rare} of {}", order.len());
        assert!((0..120).all(|row| order.contains(&row)));
        assert_eq!(balanced(&[false; 3]), [0, 1, 2]);
    }

    #[test]
    fn a_lone_violation_is_not_learnt_by_heart() {
        let mut flags = [false; 200];
        flags[7] = true;
        assert_eq!(balanced(&flags).iter().filter(|row| **row == 7).count(), VISITS_MAX);
    }

    #[test]
    fn new_rows_stand_beside_as_many_old_ones() {
        let order = interleaved(500, 400);
        assert_eq!(order.iter().filter(|row| **row >= 400).count(), 100);
        assert_eq!(order.iter().filter(|row| **row < 400).count(), 100);
        assert!(order.is_sorted() && order[0] == 0);
        assert_eq!(interleaved(500, 497).len(), OLD_MIN + 3);
        assert_eq!(interleaved(10, 3), (0..10).collect::<Vec<_>>());
    }
}
