// The op decision: when and where a walk with drift first leaves (0, a). One trial a lane; a lane whose trial has ended
// takes up its next one, a grid's width further on, while the others go on with theirs. The methods are those of
// csrc/cpu/decision.h (derivations: there and in docs/decision.md), on the same Philox words, so that a trial is the same
// up to rounding.
#pragma once

#include "cuda/noise.cuh"
#include "cuda/platform.cuh"

#include "common/decision.h"

namespace fastdiff::decision {

constexpr int kThreads = 128;

// A trial under way. Lengths are in units of its noise (x / s, a / s, v / s).
struct Walker {
  int64_t trial;
  uint64_t seed;
  uint32_t block;  // of Philox, the next one
  float x, a, v;
  float unit;     // 1 / s
  float reach;    // see stride
  int32_t steps;  // on a grid
  float time;     // exact: since the start; bridge: what is added to the steps' time
};

// (r + 1/2) / 2^32 to 2^-25, relative to the value: in (0, 1].
__device__ __forceinline__ float uniform(uint32_t r) { return static_cast<float>(r >> 1) * 0x1p-31f + 0x1p-32f; }

// m^2 steps are taken at once, as one normal m times as wide; no stride goes beyond the last step.
__device__ __forceinline__ float stride(const Args& args, const Walker& w, float distance) {
  if (args.reach == 0.f) return 1.f;
  constexpr float kMost = 2048.f;
  float m = fmaxf(floorf(fminf(distance * w.reach, kMost)), 1.f);
  const int32_t left = static_cast<int32_t>(args.max_steps) - w.steps;
  if (static_cast<int32_t>(m * m) > left) m = fmaxf(fminf(m, floorf(sqrtf(static_cast<float>(left)))), 1.f);
  return m;
}

// Whether not even the largest stride that is ever drawn moves the walker.
__device__ __forceinline__ bool stands_still(const Args& args, const Walker& w) {
  const float m = stride(args, w, fminf(w.x, w.a - w.x));
  const float move = m * (fabsf(w.v) * args.dt * m + sqrtf(args.dt) * kLargestNormal);
  return w.x + move == w.x && w.x - move == w.x;
}

// The smaller of the two values of an inverse Gaussian with mean 1 that a squared normal leaves to choose from.
__device__ __forceinline__ float smaller_value(float phi) { return 1.f / (1.f + phi + sqrtf(phi * (2.f + phi))); }

// The step of a walk whose boundaries or drift move: where the lower boundary is before and after it (the upper one lies as
// far from a), and where the walk is after it.
struct Step {
  float lower, lower_after, next;
};

__device__ __forceinline__ Step table_step(const Args& args, const Walker& w, float normal) {
  const float* row = args.table + static_cast<int64_t>(w.steps) * kColumns;
  const float half = 0.5f * w.a, drift = w.v + row[kPush] * w.unit;
  return {half - half * row[kOpen], half - half * row[kColumns + kOpen],
          half + ((w.x - half) * args.decay + (drift * args.gain + args.spread * normal))};
}

struct Euler {
  static __device__ __forceinline__ bool advance(const Args& args, Walker& w) {
    float z[4];
    normal_block(w.seed, w.block++, 0, kPath, z);
    const float sigma = sqrtf(args.dt);
    for (int j = 0; j < 4; ++j) {
      if (args.table) {
        const Step step = table_step(args, w, z[j]);
        w.x = step.next <= step.lower_after ? 0.f : step.next >= w.a - step.lower_after ? w.a : step.next;
        w.steps += 1;
        if (w.x == 0.f || w.x == w.a || w.steps >= args.max_steps) return true;
        continue;
      }
      const float m = stride(args, w, fminf(w.x, w.a - w.x));
      w.x += m * (w.v * args.dt * m + sigma * z[j]);
      w.steps += static_cast<int32_t>(m * m);
      if (w.x <= 0.f || w.x >= w.a || w.steps >= args.max_steps) return true;
    }
    return false;
  }
  static __device__ __forceinline__ float time(const Args& args, const Walker& w) {
    return static_cast<float>(w.steps) * args.dt;
  }
};

struct Bridge {
  static __device__ __forceinline__ bool advance(const Args& args, Walker& w) {
    uint32_t r[4];
    philox_words(w.seed, w.block++, 0, kPath, r);
    float z, other;
    normal_pair(r[0], r[1], z, other);
    float low = w.x, high = w.a - w.x, m = 1.f, h, variance, next, next_low, next_high;
    if (args.table) {
      const Step step = table_step(args, w, z);
      h = args.dt, variance = args.spread * args.spread, next = step.next;
      low -= step.lower, high -= step.lower;
      next_low = next - step.lower_after, next_high = w.a - step.lower_after - next;
    } else {
      m = stride(args, w, fminf(low, high)), h = variance = m * m * args.dt;
      next = w.x + (w.v * h + sqrtf(h) * z);
      next_low = next, next_high = w.a - next;
    }
    const float scale = -2.f / variance, u = uniform(r[2]);
    const bool below = u < expf(low * next_low * scale);
    const bool above = !below && 1.f - u < expf(high * next_high * scale);
    if (below || above)
      w.time = crossing(below ? low : high, fabsf(below ? next_low : next_high), h, other, uniform(r[3])) - h;
    w.x = below ? 0.f : above ? w.a : next;
    w.steps += static_cast<int32_t>(m * m);
    return below || above || w.steps >= args.max_steps;
  }

  // When a bridge over time h crosses a barrier at distance b from its start and e from its end.
  static __device__ __forceinline__ float crossing(float b, float e, float h, float z, float u) {
    const float end = fmaxf(e, 1e-20f), phi = z * z * h / (2.f * b * end);
    const float g = smaller_value(phi);
    const bool smaller = u * (1.f + g) < 1.f;
    const float start = b * (smaller ? g : 1.f), rest = end * (smaller ? 1.f : g);
    return h * (start / (start + rest));
  }
  static __device__ __forceinline__ float time(const Args& args, const Walker& w) {
    return Euler::time(args, w) + w.time;
  }
};

struct Exact {
  static __device__ __forceinline__ bool advance(const Args& args, Walker& w) {
    constexpr float kSplit = 0.28f, kLeft = 0.141586945f, kMostDrift = 2.5f;
    constexpr float kRate = 1.23370055f, kHalfPi = 1.57079633f, kPiSquared = 9.86960440f;
    uint32_t r[4];
    philox_words(w.seed, w.block++, 0, kPath, r);
    const float y = w.a - w.x, speed = fabsf(w.v), near = fminf(w.x, y);
    if (speed * fmaxf(near, w.x * kUnmoved) > kCertain) return hit_at_once(args, w, r);
    const float d = fminf(near, kMostDrift / speed);
    const float mu = w.v * d, half = 0.5f * mu * mu, rate = half + kRate;
    const float right_mass = kHalfPi / rate * expf(rate * -kSplit);
    const bool left = uniform(r[0]) * (kLeft + right_mass) < kLeft;
    const float e = 0.5f * minus_two_log(r[1]), q = kSplit * e + 1.f;
    const float t = left ? kSplit / (q * q) : e / rate + kSplit;
    const float ratio = expf(left ? q * q * (-4.f / kSplit) : t * -kPiSquared), cube = ratio * ratio * ratio;
    const float series = 1.f - 3.f * ratio + (left ? 0.f : cube * (5.f - 7.f * cube));
    const float tilt = left ? expf(-(0.5f * kSplit * e * e + half * t)) : 1.f;
    const bool accepted = uniform(r[2]) < series * tilt;
    const bool up = uniform(r[3]) * (1.f + expf(-2.f * mu)) < 1.f;
    if (accepted) w.time += t * (d * d);
    const bool hit = accepted && d == (up ? y : w.x), late = w.time > args.max_time;
    if (hit)
      w.x = up ? w.a : 0.f;
    else if (accepted)
      w.x += up ? d : -d;
    if (late) w.x = 0.5f * w.a;
    return hit || late;
  }
  // The boundary that the drift points to, which is certain to be hit.
  static __device__ __forceinline__ bool hit_at_once(const Args& args, Walker& w, const uint32_t (&r)[4]) {
    float z, unused;
    normal_pair(r[0], r[1], z, unused);
    const float speed = fabsf(w.v), distance = w.v > 0.f ? w.a - w.x : w.x;
    const float g = smaller_value(z * z / (2.f * speed * distance));
    w.time += distance / speed * (uniform(r[2]) * (1.f + g) < 1.f ? g : 1.f / g);
    w.x = w.time > args.max_time ? 0.5f * w.a : w.v > 0.f ? w.a : 0.f;
    return true;
  }
  static __device__ __forceinline__ float time(const Args&, const Walker& w) { return w.time; }
};

__device__ __forceinline__ float parameter(const Args& args, Parameter p, int64_t trial) {
  return args.parameters[p][trial * args.strides[p]];
}

// False for NaN and for a start on or outside the boundaries. rt holds the non-decision time until the walk ends.
__device__ __forceinline__ bool begin(const Args& args, int64_t trial, Walker& w) {
  w = {trial, static_cast<uint64_t>(args.seeds[trial * args.seed_stride]), 0, 0.f, 0.f, 0.f, 0.f, 0.f, 0, 0.f};
  float v = parameter(args, kDrift, trial), z = parameter(args, kStart, trial);
  float t0 = parameter(args, kNonDecision, trial);
  const float drift_sd = parameter(args, kDriftSd, trial), start_range = parameter(args, kStartRange, trial);
  const float t0_range = parameter(args, kNonDecisionRange, trial);
  if (drift_sd != 0.f || start_range != 0.f || t0_range != 0.f) {
    uint32_t r[4];
    philox_words(w.seed, 0, 0, kParameters, r);
    float normal, unused;
    normal_pair(r[0], r[1], normal, unused);
    v += drift_sd * normal;
    z += start_range * (uniform(r[2]) - 0.5f);
    t0 += t0_range * uniform(r[3]);
  }
  const float scale = 1.f / parameter(args, kNoiseScale, trial);
  w.a = parameter(args, kBoundary, trial) * scale;
  w.v = v * scale;
  w.unit = scale;
  w.x = z * scale;
  // The end of a stride lies `reach` of its standard deviations before the boundary, drift included.
  if (args.reach > 0.f)
    w.reach = 1.f / ((args.reach + fabsf(w.v) * w.a * (0.5f / args.reach)) * sqrtf(args.dt));
  if (args.method != kExact && !args.table && stands_still(args, w)) w.steps = static_cast<int32_t>(args.max_steps) - 1;
  args.rt[trial] = t0;
  return w.x > 0.f && w.x < w.a && w.a - w.a == 0.f && w.v - w.v == 0.f;
}

template <class Method>
__device__ __forceinline__ void retire(const Args& args, const Walker& w) {
  const bool below = w.x <= 0.f, above = w.x >= w.a, ended = below || above;
  args.choice[w.trial] = below ? 0 : above ? 1 : -1;
  args.rt[w.trial] += ended ? Method::time(args, w) : __uint_as_float(0x7f800000u);  // infinity
  const float place = below ? 0.f : above ? w.a : w.x;
  // Without steps, nobody knows where a walk was when time ran out.
  args.position[w.trial] =
      ended || args.method != kExact ? place * parameter(args, kNoiseScale, w.trial) : __uint_as_float(0x7fc00000u);
}

__device__ __forceinline__ void refuse(const Args& args, int64_t trial) {
  args.rt[trial] = args.position[trial] = __uint_as_float(0x7fc00000u);  // NaN
  args.choice[trial] = -1;
}

// The lane's next trial that can begin; false if there is none.
__device__ __forceinline__ bool refill(const Args& args, int64_t& next, Walker& w) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  while (next < args.trials) {
    const int64_t trial = next;
    next += step;
    if (begin(args, trial, w)) return true;
    refuse(args, trial);
  }
  return false;
}

template <class Method>
__global__ void __launch_bounds__(kThreads) decision_kernel(const Args args) {
  int64_t next = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  Walker w;
  bool under_way = refill(args, next, w);
  while (under_way) {
    if (!Method::advance(args, w)) continue;
    retire<Method>(args, w);
    under_way = refill(args, next, w);
  }
}

}  // namespace fastdiff::decision
