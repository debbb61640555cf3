//! The loss over the steps, raw and smoothed, in bounded room. The smoothing is an exponential moving average with its
//! start corrected, as TensorBoard draws it: without the correction the first steps would hang near zero.

/// Weight of the past in the smoothed loss.
pub const EMA: f64 = 0.9;

/// More steps than this are thinned to every other one; no screen has so many columns.
const MOST: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub step: u64,
    pub loss: f64,
    pub learning_rate: f64,
}

/// A point and the state of the average after it, so that steps can be taken back.
#[derive(Clone, Copy, Debug)]
struct Kept {
    point: Point,
    /// Σ (1 − β) βⁿ⁻ⁱ xᵢ over the finite losses.
    sum: f64,
    /// βⁿ.
    decay: f64,
}

#[derive(Default)]
pub struct Curve {
    kept: Vec<Kept>,
    /// Only every so many steps are kept, as a power of two; the newest step always is.
    stride: u32,
    pushed: u64,
}

impl Curve {
    pub fn push(&mut self, point: Point) {
        let (mut sum, mut decay) = self.kept.last().map_or((0.0, 1.0), |last| (last.sum, last.decay));
        if point.loss.is_finite() {
            sum = EMA * sum + (1.0 - EMA) * point.loss;
            decay *= EMA;
        }
        // The newest may stand between two strides; it gives way to the next.
        let within = self.pushed & ((1 << self.stride) - 1);
        if self.stride > 0 && self.pushed > 0 && within != 1 {
            self.kept.pop();
        }
        self.kept.push(Kept { point, sum, decay });
        self.pushed += 1;
        if self.kept.len() >= MOST {
            let mut i = 0;
            self.kept.retain(|_| {
                i += 1;
                i % 2 == 0
            });
            self.stride += 1;
            self.pushed = 0;
        }
    }

    /// Takes back `step` and all later ones.
    pub fn cut(&mut self, step: u64) {
        self.kept.retain(|kept| kept.point.step < step);
        self.pushed = 0;
        if self.kept.is_empty() {
            self.stride = 0;
        }
    }

    pub fn points(&self) -> impl DoubleEndedIterator<Item = Point> + '_ {
        self.kept.iter().map(|kept| kept.point)
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Step and smoothed loss; none before the first finite loss.
    pub fn smoothed(&self) -> impl DoubleEndedIterator<Item = (f64, f64)> + '_ {
        self.kept.iter().filter(|k| k.decay < 1.0).map(|k| (k.point.step as f64, k.sum / (1.0 - k.decay)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(losses: &[f64]) -> Curve {
        let mut curve = Curve::default();
        for (i, loss) in losses.iter().enumerate() {
            curve.push(Point { step: i as u64 + 1, loss: *loss, learning_rate: 0.0 });
        }
        curve
    }

    /// The weighted mean from its definition: weight βⁿ⁻ⁱ, over the sum of the weights.
    fn plain(losses: &[f64]) -> f64 {
        let finite: Vec<f64> = losses.iter().copied().filter(|x| x.is_finite()).collect();
        let weight = |i: usize| EMA.powi((finite.len() - 1 - i) as i32);
        let weights: f64 = (0..finite.len()).map(weight).sum();
        finite.iter().enumerate().map(|(i, x)| weight(i) * x).sum::<f64>() / weights
    }

    #[test]
    fn the_average_is_the_weighted_mean_and_passes_over_what_is_no_number() {
        let losses = [3.0, 2.5, f64::NAN, 2.75, 0.5, f64::INFINITY, 0.25, 4.0];
        for n in 1..=losses.len() {
            let (_, smoothed) = curve(&losses[..n]).smoothed().next_back().unwrap();
            assert!((smoothed - plain(&losses[..n])).abs() < 1e-12, "{n}: {smoothed} {}", plain(&losses[..n]));
        }
        assert_eq!(curve(&[f64::NAN]).smoothed().count(), 0);
    }

    #[test]
    fn steps_that_are_taken_back_leave_no_trace() {
        let losses: Vec<f64> = (0..40).map(|i| f64::from(i * 7 % 11)).collect();
        let mut resumed = curve(&losses);
        resumed.cut(21);
        for (i, loss) in losses.iter().enumerate().skip(20) {
            resumed.push(Point { step: i as u64 + 1, loss: *loss, learning_rate: 0.0 });
        }
        assert_eq!(resumed.smoothed().collect::<Vec<_>>(), curve(&losses).smoothed().collect::<Vec<_>>());
    }

    #[test]
    fn a_million_steps_are_thinned_and_the_newest_is_there() {
        let mut curve = Curve::default();
        let n = 1_000_003u64;
        for step in 1..=n {
            curve.push(Point { step, loss: 1.0 / step as f64, learning_rate: 0.0 });
        }
        assert!(curve.len() < MOST);
        assert_eq!(curve.points().next_back().map(|p| p.step), Some(n));
        let (_, smoothed) = curve.smoothed().next_back().unwrap();
        let reference = plain(&(n - 2000..=n).map(|step| 1.0 / step as f64).collect::<Vec<_>>());
        assert!((smoothed / reference - 1.0).abs() < 1e-9, "every step is in the average, kept or not");
        let steps: Vec<u64> = curve.points().map(|p| p.step).collect();
        assert!(steps.windows(2).all(|w| w[0] < w[1]));
    }
}
