// The op decision: when and where a walk with drift first leaves (0, a). One trial a lane; a lane whose trial has ended
// takes up the next one, so that all lanes work until the last trials.
//
// Multiplications and additions are not fused here, where compilers otherwise may: every instruction set then rounds
// alike, and a trial is the same to the last bit on all of them.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include "cpu/decision.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/parallel.h"

namespace fastdiff::decision {

namespace {

// Trials are made ready kLanes at a time, in vectors, and handed out one by one.
class Queue {
 public:
  Queue(const Args& args, const Grid& grid, int64_t first, int64_t end)
      : args_(args), grid_(grid), first_(first), end_(end), next_(first) {}

  // Puts the next trial into the lane; false if there is none.
  bool pop(Lanes& lanes, int lane) {
    if (next_ == end_) return false;
    const int from = static_cast<int>((next_ - first_) % kLanes);
    if (from == 0) prepare(std::min<int64_t>(kLanes, end_ - next_));
    for (int f = 0; f < kFields; ++f) lanes.rows[f][lane] = ready_.rows[f][from];
    lanes.any_strong |= ready_.any_strong;
    ++next_;
    return true;
  }

 private:
  Vec column(Parameter p, int64_t count) const {
    const float* from = args_.parameters[p] + next_ * args_.strides[p];
    if (args_.strides[p] == 0) return splat(*from);
    if (args_.strides[p] == 1 && count == kLanes) return load(from);
    return load_strided(from, args_.strides[p], count);
  }

  void prepare(int64_t count) {
    uint32_t key0[kLanes] = {}, key1[kLanes] = {}, trial[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t seed = static_cast<uint64_t>(args_.seeds[(next_ + i) * args_.seed_stride]);
      key0[i] = static_cast<uint32_t>(seed);
      key1[i] = static_cast<uint32_t>(seed >> 32);
      trial[i] = static_cast<uint32_t>(next_ - first_ + i);
    }
    std::memcpy(ready_.rows[kKey0], key0, sizeof key0);
    std::memcpy(ready_.rows[kKey1], key1, sizeof key1);
    std::memcpy(ready_.rows[kTrial], trial, sizeof trial);
    Vec v = column(kDrift, count), z = column(kStart, count), t0 = column(kNonDecision, count);
    const Vec drift_sd = column(kDriftSd, count), start_range = column(kStartRange, count);
    const Vec t0_range = column(kNonDecisionRange, count), scale = 1.f / column(kNoiseScale, count);
    if (lane_bits((drift_sd != 0.f) | (start_range != 0.f) | (t0_range != 0.f))) {
      const Words r = draw(bit_cast<VecU>(ready_.get_int(kKey0)), bit_cast<VecU>(ready_.get_int(kKey1)), VecU{},
                           kParameters);
      Vec normal, unused;
      normals(r.word[0], r.word[1], normal, unused);
      v = v + drift_sd * normal;
      z = z + start_range * (uniform(r.word[2]) - 0.5f);
      t0 = t0 + t0_range * uniform(r.word[3]);
    }
    const Vec a = column(kBoundary, count) * scale;
    v = v * scale;
    ready_.any_strong |= lane_bits(max(v, -v) * a > 2 * kCertain) != 0;
    ready_.set(kBlock, VecI{});
    ready_.set(kX, z * scale);
    ready_.set(kA, a);
    ready_.set(kV, v);
    ready_.set(kUnit, scale);
    // The end of a stride lies `reach` of its standard deviations before the boundary, drift included.
    const Vec with_drift = grid_.reach + max(v, -v) * a * (0.5f / grid_.reach);
    ready_.set(kReach, grid_.reach > 0.f ? 1.f / (with_drift * sqrt(splat(grid_.dt))) : Vec{});
    if (args_.method == kExact)
      ready_.set(kTime, Vec{});
    else
      ready_.set(kTime, grid_.table ? VecI{} : stands_still(ready_, grid_) & (VecI{} + (grid_.max_steps - 1)));
    ready_.set(kShift, Vec{});
    for (int64_t i = 0; i < count; ++i) args_.rt[next_ + i] = t0[i];  // the decision's time is added at the end
  }

  const Args& args_;
  const Grid& grid_;
  Lanes ready_ = {};
  const int64_t first_, end_;
  int64_t next_;
};

// Whether the lane's trial can begin: false for NaN and for a start on or outside the boundaries.
bool can_begin(const Lanes& lanes, int lane) {
  const float x = lanes.rows[kX][lane], a = lanes.rows[kA][lane], v = lanes.rows[kV][lane];
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return x > 0.f && x < a && a < kInfinity && v - v == 0.f;
}

template <class Method>
void walk(const Args& args, const Grid& grid, int64_t first, int64_t end) {
  Queue queue(args, grid, first, end);
  Lanes lanes = {};
  const auto refill = [&](int lane) {
    while (queue.pop(lanes, lane)) {
      if (can_begin(lanes, lane)) return true;
      const int64_t trial = first + lanes.trial(lane);
      args.rt[trial] = args.position[trial] = std::numeric_limits<float>::quiet_NaN();
      args.choice[trial] = -1;
    }
    return false;
  };
  const auto retire = [&](int lane) {
    const int64_t trial = first + lanes.trial(lane);
    const float x = lanes.rows[kX][lane], a = lanes.rows[kA][lane];
    const bool below = x <= 0.f, above = x >= a;
    args.choice[trial] = below ? 0 : above ? 1 : -1;
    args.rt[trial] += below || above ? Method::time(lanes, lane, grid) : std::numeric_limits<float>::infinity();
    const int64_t p = trial * args.strides[kNoiseScale];
    const bool known = below || above || args.method != kExact;
    const float scale = args.parameters[kNoiseScale][p];
    args.position[trial] = known ? (below ? 0.f : above ? a : x) * scale : std::numeric_limits<float>::quiet_NaN();
  };
  uint32_t active = 0;
  for (int lane = 0; lane < kLanes; ++lane) active |= (refill(lane) ? 1u : 0u) << lane;
  while (active) {
    for (uint32_t done = lane_bits(Method::advance(lanes, grid)) & active; done; done &= done - 1) {
      const int lane = __builtin_ctz(done);
      retire(lane);
      if (!refill(lane)) active &= ~(1u << lane);
    }
  }
}

constexpr int64_t kRange = 16384;  // trials between which lanes run dry once

}  // namespace
}  // namespace fastdiff::decision

extern "C" size_t fastdiff_decision_args_size() { return sizeof(fastdiff::decision::Args); }

extern "C" void fastdiff_decision(const fastdiff::decision::Args* args) {
  using namespace fastdiff::decision;
  const Grid grid{args->dt,    args->reach, static_cast<int32_t>(args->max_steps), args->max_time,
                  args->table, args->decay, args->gain, args->spread};
  const int64_t ranges = (args->trials + kRange - 1) / kRange;
  fastdiff::parallel_for(ranges, static_cast<int>(args->threads), [&](int64_t i) {
    const int64_t first = i * kRange, end = std::min(args->trials, first + kRange);
    if (args->method == kExact) walk<Exact>(*args, grid, first, end);
    if (args->method == kBridge) walk<Bridge>(*args, grid, first, end);
    if (args->method == kEuler) walk<Euler>(*args, grid, first, end);
  });
}
