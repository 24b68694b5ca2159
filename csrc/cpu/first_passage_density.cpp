// The op first_passage_density: the logarithm of the density with which a walk with drift leaves an interval at time t,
// and its derivatives, in one pass. docs/decision.md and fastdiff/ops/first_passage_density/reference.py have the formulas.
#include "common/first_passage_density.h"

#include <algorithm>
#include <limits>

#include "cpu/double.h"
#include "cpu/parallel.h"

namespace fastdiff::first_passage {

namespace {

constexpr double kPi = 0x1.921fb54442d18p1, kHalfLog2Pi = 0.91893853320467274178, kLogPi = 1.14472988584940017414;

// log g(tau, w) and its derivatives.
struct Series {
  VecD value, by_tau, by_w;
};

// The reflections -2 ... 2, for small tau; exp(-w^2 / 2 tau) is taken out, so that nothing underflows.
inline Series small_times(VecD tau, VecD w, bool slopes) {
  const VecD inverse = 1.0 / tau;
  const VecD near = exp(-2.0 * (1.0 - w) * inverse), far = exp(-2.0 * (1.0 + w) * inverse), both = near * far;
  const VecD first = (w - 2.0) * near, second = (w + 2.0) * far;
  const VecD third = (w - 4.0) * near * near * both, fourth = (w + 4.0) * far * far * both;
  const VecD total = w + first + second + third + fourth;
  Series found = {log(total) - 1.5 * log(tau) - 0.5 * w * w * inverse - kHalfLog2Pi, VecD{}, VecD{}};
  if (!slopes) return found;
  const VecD rising = (1.0 - w) * first + (1.0 + w) * second + (4.0 - 2.0 * w) * third + (4.0 + 2.0 * w) * fourth;
  const VecD shifted = 1.0 + near + far + both * (near * near + far * far);
  found.by_tau = (2.0 * rising / total + 0.5 * w * w) * inverse * inverse - 1.5 * inverse;
  found.by_w = (shifted + 2.0 * (first - second + 2.0 * third - 2.0 * fourth) * inverse) / total - w * inverse;
  return found;
}

// The waves 1 ... 5, for large tau, sin(k x) / sin(x) as polynomials in cos(x); the first one's decay is taken out.
inline Series large_times(VecD tau, VecD w, bool slopes) {
  constexpr double kRate = -kPi * kPi / 2;
  const VecL64 right = w > 0.5;
  const VecD least = right ? 1.0 - w : w;  // the sine of the smaller angle keeps its digits next to either boundary
  const VecD s = sin_pi(least), cosine = sin_pi(0.5 - least), c = right ? -cosine : cosine;
  const VecD decay = tau * kRate, q = exp(decay);
  const VecD q2 = q * q, q3 = q2 * q, q8 = q3 * q3 * q2, q15 = q8 * q3 * q3 * q, q24 = q15 * q8 * q, c2 = c * c;
  const VecD second = 4.0 * c * q3, third = 3.0 * (4.0 * c2 - 1.0) * q8;
  const VecD fourth = 16.0 * c * (2.0 * c2 - 1.0) * q15, fifth = 5.0 * ((16.0 * c2 - 12.0) * c2 + 1.0) * q24;
  const VecD total = 1.0 + second + third + fourth + fifth;
  Series found = {log(s * total) + kLogPi + decay, VecD{}, VecD{}};
  if (!slopes) return found;
  found.by_tau = kRate * (1.0 + (3.0 * second + 8.0 * third + 15.0 * fourth + 24.0 * fifth) / total);
  const VecD by_c = 4.0 * q3 + 24.0 * c * q8 + (96.0 * c2 - 16.0) * q15 + c * (320.0 * c2 - 120.0) * q24;
  found.by_w = kPi * (c / s - s * by_c / total);
  return found;
}

inline VecD choose(VecL64 mask, VecD yes, VecD no) { return mask ? yes : no; }

inline Series series(VecD tau, VecD w, bool slopes) {
  const VecL64 small = tau < kSplit;
  if (!any(~small)) return small_times(tau, w, slopes);
  const Series far = large_times(choose(small, splat(kSplit), tau), w, slopes);
  if (!any(small)) return far;
  const Series near = small_times(choose(small, tau, splat(kSplit)), w, slopes);
  return {choose(small, near.value, far.value), choose(small, near.by_tau, far.by_tau), choose(small, near.by_w, far.by_w)};
}

// Lanes of the parameters, and of the results: the value first.
struct Lanes {
  VecD parameters[kParameterCount];
  VecL64 upper;
  VecD value, slopes[kParameterCount];
};

inline void compute(Lanes& lanes, bool slopes) {
  // Later than at tau = 1e-280 nothing overflows, and before it the density is 0 to any precision.
  const VecL64 begun = lanes.parameters[kTime] > 0;
  const VecD a = lanes.parameters[kBoundary], sv = lanes.parameters[kDriftSd], area = a * a;
  const VecD t = choose(begun, lanes.parameters[kTime], splat(1.0));
  const VecD raw = t / area, tau = choose(raw > 1e-280, raw, splat(1e-280));
  const VecD v = choose(lanes.upper, -lanes.parameters[kDrift], lanes.parameters[kDrift]);
  const VecD w = choose(lanes.upper, 1.0 - lanes.parameters[kStart], lanes.parameters[kStart]);
  const VecD variance = sv * sv, x = a * w, growth = 1.0 + variance * t;
  const VecD numerator = variance * x * x - 2.0 * v * x - v * v * t;
  const Series g = series(tau, w, slopes);
  const VecD value = 0.5 * numerator / growth - 0.5 * log(growth) - 2.0 * log(a) + g.value;
  lanes.value = choose(begun, value, splat(-std::numeric_limits<double>::infinity()));
  if (!slopes) return;
  const VecD per = 1.0 / growth, ratio = numerator * per;
  const VecD turn = (variance * x - v) * per;  // d/dx of the exponent
  const VecD by[kParameterCount] = {
      -0.5 * per * (v * v + variance * (ratio + 1.0)) + g.by_tau / area,
      choose(lanes.upper, (x + v * t) * per, -(x + v * t) * per),
      w * turn - (2.0 + 2.0 * tau * g.by_tau) / a,
      choose(lanes.upper, -(a * turn + g.by_w), a * turn + g.by_w),
      sv * per * (x * x - t * (ratio + 1.0)),
  };
  for (int i = 0; i < kParameterCount; ++i) lanes.slopes[i] = choose(begun, by[i], VecD{});
}

inline VecD some(const double* from, int64_t stride, int64_t first, int64_t count) {
  if (stride == 0) return splat(*from);
  if (stride == 1 && count == kDoubles) return load(from + first);
  VecD v = splat(from[first * stride]);
  for (int64_t i = 1; i < count; ++i) v[i] = from[(first + i) * stride];
  return v;
}

inline void put(double* to, VecD v, int64_t count) {
  if (count == kDoubles) return store(to, v);
  for (int64_t i = 0; i < count; ++i) to[i] = v[i];
}

void run(const Args& args, int64_t first, int64_t end) {
  Lanes lanes = {};
  for (; first < end; first += kDoubles) {
    const int64_t count = std::min<int64_t>(kDoubles, end - first);
    for (int i = 0; i < kParameterCount; ++i)
      lanes.parameters[i] = some(args.parameters[i], args.strides[i], first, count);
    if (args.upper)
      for (int64_t i = 0; i < count; ++i) lanes.upper[i] = args.upper[(first + i) * args.upper_stride] ? -1 : 0;
    compute(lanes, args.slopes != nullptr);
    put(args.log_density + first, lanes.value, count);
    if (!args.slopes) continue;
    for (int i = 0; i < kParameterCount; ++i) put(args.slopes + i * args.count + first, lanes.slopes[i], count);
  }
}

constexpr int64_t kRange = 1024, kPerThread = 8192;

}  // namespace
}  // namespace fastdiff::first_passage

extern "C" size_t fastdiff_first_passage_density_args_size() { return sizeof(fastdiff::first_passage::Args); }

extern "C" void fastdiff_first_passage_density(const fastdiff::first_passage::Args* args) {
  using namespace fastdiff::first_passage;
  const int threads = fastdiff::useful_threads(args->count, kPerThread, static_cast<int>(args->threads));
  fastdiff::parallel_for((args->count + kRange - 1) / kRange, threads, [&](int64_t i) {
    run(*args, i * kRange, std::min(args->count, (i + 1) * kRange));
  });
}
