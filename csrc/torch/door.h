// How an operator's call reaches a kernel, or Python.
//
// An operator is a struct of its arguments, in the order of its schema, with four members:
//     static constexpr const char* kName          the operator's name
//     auto fields() const                         std::tie of the arguments
//     std::string why_not(const Kernels&) const   why these kernels cannot run this call, or none
//     run(const Kernels&) const                   a Tensor, or a tuple of them; called only where why_not is none
// Schema, shape function, checks with their messages, derivatives and the reference are Python's
// (fastdiff/ops/<op>/__init__.py), which work without this library. What no kernel here takes goes back to Python's
// half of the operator, "fastdiff::<name>.python", inside the dispatcher, with the reason.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "torch/kernels.h"
#include "torch/tensors.h"

namespace fastdiff {

// What use_backend() has set for this thread.
BackendCode forced_backend();

// The kernels that a call is for, by what is forced, or else by its device and what was measured there: `keys` is
// attention's k, whose size decides. Null where it is for Python's half: Triton, or the reference.
const Kernels* chosen_kernels(BackendCode forced, const char* op, const Tensor& first, const Tensor* keys);

namespace door {

template <class Fields>
struct Stack;

template <class... T>
struct Stack<std::tuple<T...>> {
  static constexpr size_t kSize = sizeof...(T);

  // Takes the arguments off the stack.
  template <class Op>
  static Op take(StableIValue* stack) {
    return std::apply([](auto&&... field) { return Op{std::move(field)...}; },
                      torch::stable::detail::unbox_to_tuple<std::decay_t<T>...>(stack));
  }

  static void put(StableIValue* stack, const std::tuple<T...>& fields) {
    torch::stable::detail::box_from_tuple(stack, std::tuple<std::decay_t<T>...>(fields));
  }
};

template <class Op>
using StackOf = Stack<decltype(std::declval<const Op&>().fields())>;

// Of an operator that returns nothing, one tensor, or several.
inline void put_results(StableIValue* stack, const Tensor& result) {
  stack[0] = torch::stable::detail::from(result);
}
template <class... T>
void put_results(StableIValue* stack, const std::tuple<T...>& results) {
  torch::stable::detail::box_from_tuple(stack, results);
}

// The tensor whose device and dtype stand for the call's.
template <class Op>
const Tensor& first_tensor(const Op& op) {
  if constexpr (requires { op.first(); })
    return op.first();
  else
    return std::get<0>(op.fields());
}
template <class Op>
const Tensor* keys_of(const Op& op) {
  if constexpr (requires { op.keys(); })
    return &op.keys();
  else
    return nullptr;
}

// Calls fastdiff::<name>.python(arguments..., backend, reason) -> (results..., error), which leaves the results on the
// stack. Python's exceptions lose their type and message on their way through C: they come back as text, in a tensor
// of bytes, for PyTorch up to 2.13 mixes up the types of results that differ.
void call_python(const char* name, StableIValue* stack, size_t arguments, size_t results, BackendCode forced,
                 const std::string& reason);

// Looked up once for each library.
template <class Op>
bool has_kernel(const Kernels& kernels) {
  static std::array<std::atomic<bool>, kBackends> found{};
  std::atomic<bool>& known = found[kernels.backend];
  if (!known.load(std::memory_order_relaxed))
    known.store(kernels.symbol(std::string("fastdiff_") + Op::kName) != nullptr, std::memory_order_relaxed);
  return known.load(std::memory_order_relaxed);
}

template <class Op>
std::string why_not(const Op& op, const Kernels& kernels) {
  if (!kernels.is_open()) return std::string("the ") + kernels.name + " library is not loaded";
  if (!has_kernel<Op>(kernels)) return std::string("the ") + kernels.name + " library has no kernel for it";
  return op.why_not(kernels);
}

template <class Op>
void run(StableIValue* stack, uint64_t arguments, uint64_t results) {
  const Op op = StackOf<Op>::template take<Op>(stack);
  const BackendCode forced = forced_backend();
  std::string reason;
  if (const Kernels* kernels = chosen_kernels(forced, Op::kName, first_tensor(op), keys_of(op))) {
    reason = why_not(op, *kernels);
    if (reason.empty()) {
      if constexpr (std::is_void_v<decltype(op.run(*kernels))>)
        op.run(*kernels);
      else
        put_results(stack, op.run(*kernels));
      return;
    }
  }
  StableIValue room[32];
  StackOf<Op>::put(room, op.fields());
  call_python(Op::kName, room, arguments, results, forced, reason);
  std::copy(room, room + results, stack);
}

// fastdiff::<name>.why_not(arguments..., int backend) -> str
template <class Op>
void explain(StableIValue* stack, uint64_t arguments, uint64_t) {
  const auto backend = torch::stable::detail::to<int64_t>(stack[arguments - 1]);
  const Op op = StackOf<Op>::template take<Op>(stack);
  const Kernels& kernels = backend == kCpu ? cpu_kernels() : backend == kCuda ? cuda_kernels() : emulation_kernels();
  stack[0] = torch::stable::detail::from(why_not(op, kernels));
}

template <class Op>
void register_operator(torch::stable::detail::StableLibrary& library) {
  library.impl(Op::kName, &run<Op>);
  library.impl((std::string(Op::kName) + ".why_not").c_str(), &explain<Op>);
}

}  // namespace door
}  // namespace fastdiff

// At the end of an operator's file, outside of all namespaces.
#define FASTDIFF_OPERATOR(Op)                                                                 \
  STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) { ::fastdiff::door::register_operator<Op>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, m) { ::fastdiff::door::register_operator<Op>(m); }
