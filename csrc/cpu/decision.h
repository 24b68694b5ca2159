// How the op decision moves its walkers: three methods, one trial a lane. docs/decision.md has the derivations.
//
// Lengths are in units of the trial's noise (x / s, a / s, v / s), so that every walker's noise is 1. A method's
// `advance` moves all lanes and returns which have ended: x <= 0 below, x >= a above, in between: out of time.
#pragma once

#include <algorithm>

#include "common/decision.h"
#include "cpu/noise.h"
#include "cpu/vec.h"

namespace fastdiff::decision {

// What a lane holds. kTrial is the trial's number within the range that a thread works on. kShift and kReach are
// for walks on a grid: what is added to the time at the end, and how far a stride goes (see `stride`). kUnit: 1 / s.
enum Field { kKey0, kKey1, kBlock, kTrial, kX, kA, kV, kReach, kUnit, kTime, kShift, kFields };

struct Lanes {
  alignas(64) float rows[kFields][kLanes];
  bool any_strong;  // whether any trial so far has had so much drift that its end may be certain on the way

  Vec get(Field f) const { return load(rows[f]); }
  VecI get_int(Field f) const { return bit_cast<VecI>(load(rows[f])); }
  void set(Field f, Vec v) { store(rows[f], v); }
  void set(Field f, VecI v) { store(rows[f], bit_cast<Vec>(v)); }
  int32_t trial(int lane) const { return bit_cast<int32_t>(rows[kTrial][lane]); }
};

struct Grid {
  float dt;
  float reach;  // strides end that many of their own standard deviations before a boundary; 0: every step is drawn
  int32_t max_steps;
  float max_time;  // exact: there are no steps
  const float* table;  // [max_steps + 1, kColumns] or null
  float decay, gain, spread;
};

// Where the lower boundary is, at the beginning and at the end of each lane's step, and the step's drift; the upper one lies
// as far from a.
struct Step {
  Vec lower, lower_after, push;
};

inline Step table_step(const Lanes& lanes, const Grid& grid, VecI steps) {
  Vec open, after, push;
  for (int i = 0; i < kLanes; ++i) {
    const float* row = grid.table + static_cast<int64_t>(std::min(steps[i], grid.max_steps - 1)) * kColumns;
    open[i] = row[kOpen], after[i] = row[kColumns + kOpen], push[i] = row[kPush];
  }
  const Vec half = 0.5f * lanes.get(kA);
  return {half - half * open, half - half * after, push * lanes.get(kUnit)};
}

// The end of a step of a walk that may leak: exact for a drift that does not change within the step.
inline Vec step_end(Vec x, Vec a, Vec drift, Vec normal, const Grid& grid) {
  const Vec middle = 0.5f * a;
  return middle + ((x - middle) * grid.decay + (drift * grid.gain + grid.spread * normal));
}

struct Words {
  VecU word[4];
};

// The four words of each lane's next block. Even lanes lie in the low halves of one vector of 64 bits, odd lanes in
// the high halves; Philox looks at low halves only, and the result is put back without a shuffle.
inline Words draw(VecU key0, VecU key1, VecU block, Stream stream) {
  const auto split = [](VecU v) { return TwoL{bit_cast<VecL>(v), bit_cast<VecL>(v) >> 32}; };
  const auto low = [](VecU v) { return TwoL{bit_cast<VecL>(v) & 0xffffffffu, bit_cast<VecL>(v) >> 32}; };
  TwoL words[4];
  philox_lanes(split(key0), split(key1), low(block), stream, words);
  Words out;
  for (int j = 0; j < 4; ++j) out.word[j] = bit_cast<VecU>((words[j].a & 0xffffffffu) | (words[j].b << 32));
  return out;
}

inline Words draw_next(Lanes& lanes) {
  const VecU block = bit_cast<VecU>(lanes.get_int(kBlock));
  lanes.set(kBlock, bit_cast<VecI>(block + 1u));
  return draw(bit_cast<VecU>(lanes.get_int(kKey0)), bit_cast<VecU>(lanes.get_int(kKey1)), block, kPath);
}

// (r + 1/2) / 2^32 to 2^-25, relative to the value: in (0, 1].
inline Vec uniform(VecU r) { return to_float(bit_cast<VecI>(r >> 1)) * 0x1p-31f + 0x1p-32f; }

inline void normals(VecU radius_bits, VecU angle_bits, Vec& first, Vec& second) {
  unit_circle(angle_bits, first, second);
  const Vec radius = normal_radius(radius_bits);
  first *= radius;
  second *= radius;
}

inline Vec select(VecI mask, Vec yes, Vec no) { return mask ? yes : no; }

// m^2 steps are taken at once, as one normal m times as wide: m = distance * reach / sqrt(dt), so that a walker far
// from both boundaries strides and one nearby takes single steps. Whole numbers, and no stride beyond the last step.
inline Vec stride(Vec distance, Vec reach, VecI steps, const Grid& grid) {
  if (grid.reach == 0.f) return splat(1.f);
  constexpr float kMost = 2048;
  Vec m = max(to_float(to_int(min(distance * reach, splat(kMost)))), splat(1.f));
  const VecI left = grid.max_steps - steps;
  if (lane_bits(to_int(m * m) > left))
    m = max(min(m, to_float(to_int(sqrt(to_float(left))))), splat(1.f));
  return m;
}

// Whether not even the largest stride that is ever drawn moves the walker, because it is below half an ulp of x. Then
// none will, and only the last of the steps is taken: 2^30 of them would end nowhere else.
inline VecI stands_still(const Lanes& lanes, const Grid& grid) {
  const Vec x = lanes.get(kX), v = lanes.get(kV);
  const Vec m = stride(min(x, lanes.get(kA) - x), lanes.get(kReach), VecI{}, grid);
  const Vec move = m * (max(v, -v) * grid.dt * m + sqrt(splat(grid.dt)) * kLargestNormal);
  return (x + move == x) & (x - move == x);
}

// Of the two values of an inverse Gaussian with mean 1 that a squared normal leaves to choose from (Michael, Schucany &
// Haas 1976), the smaller, g; 1 / g is the other, and g is taken with probability 1 / (1 + g). phi: the squared
// normal over twice the shape.
inline Vec smaller_value(Vec phi) { return 1.f / (1.f + phi + sqrt(phi * (2.f + phi))); }

// Euler-Maruyama: x += v dt + sqrt(dt) z, looked at after each step. A block of Philox is four moves.
struct Euler {
  static VecI advance(Lanes& lanes, const Grid& grid) {
    const Words r = draw_next(lanes);
    Vec z[4];
    normals(r.word[0], r.word[1], z[0], z[1]);
    normals(r.word[2], r.word[3], z[2], z[3]);
    const Vec a = lanes.get(kA), drift = lanes.get(kV) * grid.dt, reach = lanes.get(kReach);
    const Vec sigma = sqrt(splat(grid.dt));
    Vec x = lanes.get(kX);
    VecI steps = lanes.get_int(kTime), done = {};
    for (int j = 0; j < 4; ++j) {
      if (grid.table) {
        const Step step = table_step(lanes, grid, steps);
        const Vec next = step_end(x, a, lanes.get(kV) + step.push, z[j], grid);
        const VecI below = next <= step.lower_after, above = ~below & (next >= a - step.lower_after);
        x = select(done, x, select(below, Vec{}, select(above, a, next)));
        steps = done ? steps : steps + 1;
        done = done | below | above | (steps >= grid.max_steps);
        continue;
      }
      const Vec m = stride(min(x, a - x), reach, steps, grid);
      const Vec next = x + m * (drift * m + sigma * z[j]);
      x = select(done, x, next);
      steps = done ? steps : steps + to_int(m * m);
      done = (x <= 0.f) | (x >= a) | (steps >= grid.max_steps);
    }
    lanes.set(kX, x);
    lanes.set(kTime, steps);
    return done;
  }
  static float time(const Lanes& lanes, int lane, const Grid& grid) {
    return static_cast<float>(bit_cast<int32_t>(lanes.rows[kTime][lane])) * grid.dt;
  }
};

// Euler's steps, and between their ends a Brownian bridge: the probability of a crossing, and when it came. A block of
// Philox is one move: two words for the step's normal (and a second one), one for whether, one for when.
struct Bridge {
  static VecI advance(Lanes& lanes, const Grid& grid) {
    const Words r = draw_next(lanes);
    Vec z, other;
    normals(r.word[0], r.word[1], z, other);
    const Vec a = lanes.get(kA), x = lanes.get(kX);
    const VecI steps = lanes.get_int(kTime);
    // Distances from either boundary before and after the step. A bridge seen from a boundary that moves evenly is a
    // bridge, so that the rest is the same for both.
    Vec low = x, high = a - x, h, next, next_low, next_high, variance;
    VecI after;
    if (grid.table) {
      const Step step = table_step(lanes, grid, steps);
      h = splat(grid.dt), variance = splat(grid.spread * grid.spread), after = steps + 1;
      next = step_end(x, a, lanes.get(kV) + step.push, z, grid);
      low -= step.lower, high -= step.lower;
      next_low = next - step.lower_after, next_high = a - step.lower_after - next;
    } else {
      const Vec m = stride(min(low, high), lanes.get(kReach), steps, grid);
      h = variance = m * m * grid.dt, after = steps + to_int(m * m);
      next = x + (lanes.get(kV) * h + sqrt(h) * z);
      next_low = next, next_high = a - next;
    }
    const Vec scale = -2.f / variance, u = uniform(r.word[2]);
    const VecI below = u < exp(low * next_low * scale);
    const VecI above = ~below & (1.f - u < exp(high * next_high * scale));
    const VecI crossed = below | above;
    lanes.set(kX, select(below, Vec{}, select(above, a, next)));
    lanes.set(kTime, after);
    if (lane_bits(crossed)) {
      const Vec before = select(below, low, high), past = select(below, next_low, next_high);
      const Vec within = crossing(before, max(past, -past), h, other, uniform(r.word[3]));
      lanes.set(kShift, select(crossed, within - h, Vec{}));
    }
    return crossed | (after >= grid.max_steps);
  }

  // When a bridge over time h crosses a barrier at distance b from its start and e from its end: t / (h - t) is
  // inverse Gaussian with mean b / e and shape b^2 / h. Written so that nothing is divided by e, which may be tiny.
  static Vec crossing(Vec b, Vec e, Vec h, Vec z, Vec u) {
    const Vec end = max(e, splat(1e-20f));
    const Vec phi = z * z * h / (2.f * b * end);
    const Vec g = smaller_value(phi);
    const VecI smaller = u * (1.f + g) < 1.f;
    const Vec start = b * select(smaller, g, splat(1.f)), rest = end * select(smaller, splat(1.f), g);
    return h * (start / (start + rest));
  }

  static float time(const Lanes& lanes, int lane, const Grid& grid) {
    return Euler::time(lanes, lane, grid) + lanes.rows[kShift][lane];
  }
};

// Without steps (Drugowitsch 2016): the walker leaves the widest interval around itself that fits between the
// boundaries, (x - d, x + d), at a time and on a side that are independent and both drawn exactly; and again, until
// the end of the interval is a boundary. A block of Philox is one attempt.
//
// In units of d^2 the time has the density cosh(mu) exp(-mu^2 t / 2) f(t), mu = v d, where f has one alternating
// series for small t and one for large t. Rejection (Devroye 2009): below kSplit a tail-normal 1 / sqrt(t), above it
// an exponential that carries the drift; 0.96 of the attempts are accepted without drift, 0.66 with the most.
//
// With much drift d = kMostDrift / |v| is short, the attempts are many, and where d is below half an ulp of x there is no
// end of them. So where the boundary that the drift comes from is out of reach, at exp(-2 |v| min(x, y)) < exp(-2 kCertain),
// which is 0, the rest is drawn at once: the time to the other one, a distance b away, is inverse Gaussian with mean
// b / |v| and shape b^2. The same where |v| x > kCertain / kUnmoved = 2^23: d is some ulp of x at most, and so near to a
// boundary that the first rule does not hold, y is all rounding. What is left ends: an attempt moves x by an ulp at
// least, and the boundary is never further away than kCertain / kMostDrift times d.
struct Exact {
  static constexpr float kSplit = 0.28f;
  static constexpr float kLeft = 0.141586945f;      // 4 phi(c) / c, c = 1 / sqrt(kSplit): the proposals' mass below
  static constexpr float kMostDrift = 2.5f;         // intervals are narrowed until |mu| is at most this
  static constexpr float kRate = 1.23370055f;       // pi^2 / 8
  static constexpr float kHalfPi = 1.57079633f, kPiSquared = 9.86960440f;

  static VecI advance(Lanes& lanes, const Grid& grid) {
    const Words r = draw_next(lanes);
    const Vec x = lanes.get(kX), a = lanes.get(kA), v = lanes.get(kV), y = a - x;
    const Vec speed = max(v, -v), near = min(x, y), d = min(near, kMostDrift / speed);
    const Vec mu = v * d, half = 0.5f * mu * mu, rate = half + kRate;
    const Vec right_mass = kHalfPi / rate * exp(rate * -kSplit);
    const VecI left = uniform(r.word[0]) * (kLeft + right_mass) < kLeft;
    const Vec e = 0.5f * minus_two_log(r.word[1]), q = kSplit * e + 1.f;
    const Vec t = select(left, splat(kSplit), e) / select(left, q * q, rate) + select(left, Vec{}, splat(kSplit));

    // The series over its first term, which the proposals are drawn from; what is left out is below 1e-10.
    const Vec w = exp(select(left, q * q * (-4.f / kSplit), t * -kPiSquared));
    const Vec w3 = w * w * w;
    const Vec series = 1.f - 3.f * w + select(left, Vec{}, w3 * (5.f - 7.f * w3));
    const Vec tilt = select(left, exp(-(0.5f * kSplit * e * e + half * t)), splat(1.f));
    const VecI accepted = uniform(r.word[2]) < series * tilt;
    const VecI up = uniform(r.word[3]) * (1.f + exp(-2.f * mu)) < 1.f;

    Vec time = lanes.get(kTime) + select(accepted, t * (d * d), Vec{});
    VecI hit = accepted & (d == select(up, y, x));
    Vec moved = select(hit, select(up, a, Vec{}), select(up, x + d, x - d));
    moved = select(accepted, moved, x);
    if (lanes.any_strong) {
      const VecI certain = speed * max(near, x * kUnmoved) > kCertain;
      const VecI rises = v > 0.f;
      const Vec rest = time_at_once(select(rises, y, x), speed, r);
      time = select(certain, lanes.get(kTime) + rest, time);
      moved = select(certain, select(rises, a, Vec{}), moved);
      hit = hit | certain;
    }
    const VecI late = time > grid.max_time;
    lanes.set(kX, select(late, 0.5f * a, moved));
    lanes.set(kTime, time);
    return hit | late;
  }

  // To a boundary that is certain to be hit.
  static Vec time_at_once(Vec distance, Vec speed, const Words& r) {
    Vec z, unused;
    normals(r.word[0], r.word[1], z, unused);
    const Vec g = smaller_value(z * z / (2.f * speed * distance));
    return distance / speed * select(uniform(r.word[2]) * (1.f + g) < 1.f, g, 1.f / g);
  }
  static float time(const Lanes& lanes, int lane, const Grid&) { return lanes.rows[kTime][lane]; }
};

}  // namespace fastdiff::decision
