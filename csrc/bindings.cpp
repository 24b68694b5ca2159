// fastdiff._C: what is no operator. Knows no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings_density.h"
#include "common/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

std::map<std::string, std::string> build_info() {
  return {
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#elif defined(__GNUC__)
      {"compiler", "gcc " __VERSION__},
#endif
      {"date", __DATE__},
      {"python", PY_VERSION},
  };
}

// Those that kernels here or elsewhere in fastdiff ask for, of this processor.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const std::pair<const char*, bool> known[] = {
      {"avx2", __builtin_cpu_supports("avx2")},
      {"fma", __builtin_cpu_supports("fma")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bw", __builtin_cpu_supports("avx512bw")},
      {"avx512vl", __builtin_cpu_supports("avx512vl")},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16")},
  };
  for (const auto& [name, has] : known)
    if (has) found.emplace_back(name);
#endif
  return found;
}

#if defined(__x86_64__)

constexpr int kChains = 12;  // independent sums: more than the latency of either instruction
constexpr int kRounds = 4096;

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The sums are told to the compiler as changed, so that it neither leaves the loop out nor merges rounds.
__attribute__((target("avx512f"))) double seconds_of_float32() {
  __m512 sums[kChains], x = _mm512_set1_ps(1e-3f);
  for (auto& s : sums) s = _mm512_setzero_ps();
  const auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
      sums[j] = _mm512_fmadd_ps(x, x, sums[j]);
      asm volatile("" : "+v"(sums[j]));
    }
  return seconds_since(start);
}

__attribute__((target("avx512f,avx512bf16"))) double seconds_of_bfloat16() {
  __m512 sums[kChains];
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f));
  for (auto& s : sums) s = _mm512_setzero_ps();
  const auto start = Clock::now();
  for (int i = 0; i < kRounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < kChains; ++j) {
      sums[j] = _mm512_dpbf16_ps(sums[j], x, x);
      asm volatile("" : "+v"(sums[j]));
    }
  return seconds_since(start);
}

#endif

// Multiply-adds a second of vdpbf16ps, over those of float32's fused multiply-add: 2 where the instruction runs at full
// rate (Zen 4), 1 where at half; 0 where there is none. Each time is the best of several.
double bfloat16_rate() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  double single = 1, half = 1;
  for (int i = 0; i < 5; ++i) {
    single = std::min(single, seconds_of_float32());
    half = std::min(half, seconds_of_bfloat16());
  }
  return 2 * single / half;
#else
  return 0;
#endif
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  uint64_t words[4] = {counter[0], counter[1], counter[2], counter[3]};
  for (int round = 0; round < fastdiff::kPhiloxRounds; ++round) {
    fastdiff::philox_round(words, key[0], key[1]);
    key[0] += fastdiff::kWeyl0, key[1] += fastdiff::kWeyl1;
  }
  std::array<uint32_t, 4> result;
  for (int i = 0; i < 4; ++i) result[i] = static_cast<uint32_t>(words[i]);
  return result;
}

// Elements of tensors on the CPU, some of each, as they were when this was made. Whoever asks keeps the tensors alive
// and has seen that they still lie where they lay: fastdiff/inference/watch.py.
class Samples {
 public:
  using Run = std::tuple<uintptr_t, int64_t, int64_t, int>;  // address, elements, bytes between them, bytes of one

  explicit Samples(std::vector<Run> runs) : runs_(std::move(runs)) {
    for (const auto& run : runs_) visit(run, [&](auto value) { seen_.push_back(value); });
  }

  bool have_changed() const {
    size_t i = 0;
    uint64_t different = 0;  // no branch inside: the processor then waits for many lines of memory at once
    for (const auto& run : runs_) visit(run, [&](auto value) { different |= value ^ seen_[i++]; });
    return different;
  }

 private:
  template <class F>
  static void visit(const Run& run, F&& f) {
    const auto [address, count, stride, bytes] = run;
    if (bytes == 1) visit_as<uint8_t>(address, count, stride, f);
    if (bytes == 2) visit_as<uint16_t>(address, count, stride, f);
    if (bytes == 4) visit_as<uint32_t>(address, count, stride, f);
    if (bytes == 8) visit_as<uint64_t>(address, count, stride, f);
  }

  template <class T, class F>
  static void visit_as(uintptr_t address, int64_t count, int64_t stride, F&& f) {
    for (int64_t i = 0; i < count; ++i) f(static_cast<uint64_t>(*reinterpret_cast<const T*>(address + i * stride)));
  }

  std::vector<Run> runs_;
  std::vector<uint64_t> seen_;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What is no operator: how fastdiff was compiled, what this processor can do, Philox's known answers.";
  m.def("build_info", &build_info, "Compiler, date and Python of this build.");
  m.def("instruction_sets", &instruction_sets, "Names of those of this processor that kernels care for.");
  m.def("bfloat16_rate", &bfloat16_rate,
        "Products a second in bfloat16 over those in float32, measured in a millisecond; 0 without AVX512_BF16.");
  m.def("philox", &philox, pybind11::arg("counter"), pybind11::arg("key"),
        "Philox4x32-10 (Salmon et al. 2011): four words of the counter, two of the key -> four words.");
  pybind11::class_<Samples>(m, "Samples", "Elements of tensors: have they changed since this was made?")
      .def(pybind11::init<std::vector<Samples::Run>>(), pybind11::arg("runs"),
           "runs: (address, elements, bytes between two, bytes of one: 1, 2, 4 or 8) of memory that stays alive.")
      .def("have_changed", &Samples::have_changed, "Compares the bits.");
  fastdiff::first_passage::add_density(m);
}
