// The arguments of the op decision, on every device.
#pragma once

#include <cstdint>

namespace fastdiff::decision {

enum Method : int64_t { kExact = 0, kBridge = 1, kEuler = 2 };  // the places in fastdiff.ops.decision.METHODS
enum Stream : uint32_t { kPath = 0, kParameters = 1 };          // of Philox
enum Parameter { kDrift, kBoundary, kStart, kNonDecision, kNoiseScale, kDriftSd, kStartRange, kNonDecisionRange };
constexpr int kParameterCount = 8;
constexpr int64_t kMaxSteps = int64_t{1} << 30;

// Where walks would never end, in units of the trial's noise; cpu/decision.h has the derivations.
constexpr float kCertain = 1024.f;        // exact: |v| times the distance to the nearer boundary, and the rest is one draw
constexpr float kUnmoved = 0x1p-13f;      // exact: the same if |v| x times this is above it: moves are of few ulp
constexpr float kLargestNormal = 7.f;     // on a grid: above sqrt(-2 ln 2^-33), the largest that is ever drawn

// A row of the table of walks whose boundaries or drift move, for each grid point: the share of the separation that is
// left, symmetrically around the middle, and what is added to the drift in the step that begins there.
enum Column { kOpen, kPush, kColumns };

struct Args {
  const int64_t* seeds;                      // [N]
  const float* parameters[kParameterCount];  // [N] each, in the order of Parameter
  int64_t strides[kParameterCount];          // 0: one value for all trials
  float* rt;                                 // [N], as all outputs
  int8_t* choice;                            // 1 above, 0 below, -1 neither
  float* position;                           // where the walk ended
  int64_t seed_stride, trials;
  int64_t method;  // enum Method
  int64_t max_steps;
  int64_t threads;  // of the CPU
  float dt, reach, max_time;
  const float* table;  // [max_steps + 1, kColumns], or null: nothing moves. With a table reach is 0.
  // A step of a leaky walk, x measured from the middle: x decay + drift gain + spread times a normal.
  float decay, gain, spread;
};

}  // namespace fastdiff::decision
