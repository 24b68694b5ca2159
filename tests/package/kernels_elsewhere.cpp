// Calls kernels of a CPU library on fixed inputs and prints what they return, one number a line: the same program for two
// processors shows whether both compute the same (test_cross.py).
//
//     kernels_elsewhere fastdiff/lib/cpu_default.so
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/adamw.h"
#include "common/attention.h"
#include "common/conv2d.h"
#include "common/first_passage_density.h"
#include "common/group_norm_silu.h"
#include "common/philox_args.h"
#include "common/reverse_step.h"

using namespace fastdiff;

namespace {

void* library;
const char* part;  // that is printed

template <class Args>
void call(const char* name, Args& args) {
  const auto kernel = reinterpret_cast<void (*)(const Args*)>(dlsym(library, name));
  if (!kernel) std::fprintf(stderr, "no %s\n", name), std::exit(2);
  kernel(&args);
}

// In [-1, 1], the same on every machine.
std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> made(count);
  for (float& x : made) seed = seed * 1664525u + 1013904223u, x = static_cast<float>(seed >> 8) / (1 << 23) - 1;
  return made;
}

// Elements of one dtype: float32, or bfloat16 by cutting off.
struct Elements {
  int64_t dtype;
  std::vector<uint8_t> bytes;

  Elements(int64_t dtype, const std::vector<float>& from) : dtype(dtype), bytes(from.size() * size()) {
    for (size_t i = 0; i < from.size(); ++i)
      std::memcpy(&bytes[i * size()], reinterpret_cast<const uint8_t*>(&from[i]) + 4 - size(), size());
  }
  Elements(int64_t dtype, int64_t count) : dtype(dtype), bytes(count * (dtype == kFloat32 ? 4 : 2)) {}

  size_t size() const { return dtype == kFloat32 ? 4 : 2; }
  void* data() { return bytes.data(); }
  void print() const {
    for (size_t i = 0; i < bytes.size(); i += size()) {
      float x = 0;
      std::memcpy(reinterpret_cast<uint8_t*>(&x) + 4 - size(), &bytes[i], size());
      std::printf("%s %.9g\n", part, x);
    }
  }
};

template <class T>
void print(const std::vector<T>& from) {
  for (T x : from) std::printf("%s %.17g\n", part, static_cast<double>(x));
}

void philox() {
  const int64_t seeds[] = {3, 1234567890123};
  Elements out(kFloat32, 2 * 101);
  philox_op::Args args = {seeds, out.data(), 1, 2, 101, 7, 1, 0, kFloat32, 2};
  call("fastdiff_philox_normal", args);
  out.print();
}

// Both directions; 33 pixels leave a rest in every vector.
void norm(int64_t dtype, int64_t channels_last) {
  constexpr int64_t n = 2, c = 12, pixels = 33, groups = 4;
  Elements x(dtype, numbers(n * c * pixels, 1)), grad(dtype, numbers(n * c * pixels, 2)), y(dtype, n * c * pixels);
  auto weight = numbers(c, 3), bias = numbers(c, 4), scale = numbers(n * c, 5), shift = numbers(n * c, 6);
  std::vector<float> mean(n * groups), rstd(n * groups), dweight(c), dbias(c), dscale(n * c), dshift(n * c);
  const group_norm::Parameters affine = {
      {weight.data(), 0, kFloat32}, {bias.data(), 0, kFloat32}, {scale.data(), c, kFloat32}, {shift.data(), c, kFloat32}};
  const group_norm::Shape shape = {n, c, pixels, groups, c * pixels, channels_last, dtype, 1, 2, 0};
  group_norm::ForwardArgs forward = {x.data(), y.data(), mean.data(), rstd.data(), nullptr, affine, shape, 1e-5};
  call("fastdiff_group_norm_silu", forward);
  y.print(), print(mean), print(rstd);
  group_norm::BackwardArgs backward = {grad.data(), x.data(), mean.data(), rstd.data(), y.data(), dweight.data(),
                                       dbias.data(), dscale.data(), dshift.data(), nullptr, affine, shape};
  call("fastdiff_group_norm_silu_backward", backward);
  y.print(), print(dweight), print(dbias), print(dscale), print(dshift);
}

void attend(int64_t dtype) {
  constexpr int64_t heads = 2, tokens = 19, width = 10, all = heads * tokens * width;
  Elements q(dtype, numbers(all, 1)), k(dtype, numbers(all, 2)), v(dtype, numbers(all, 3)), out(dtype, all);
  std::vector<float> lse(heads * tokens);
  const auto view = [](Elements& e) { return attention::View{e.data(), {all, tokens * width, width, 1}}; };
  attention::ForwardArgs args = {view(q), view(k), view(v), view(out), lse.data(),
                                 {1, heads, tokens, tokens, width, dtype, 2, 0.3}};
  call("fastdiff_attention", args);
  out.print(), print(lse);
}

// With guidance, learned variance and noise.
void step(int64_t dtype) {
  constexpr int64_t n = 2, c = 3, pixels = 21;
  Elements x(dtype, numbers(n * c * pixels, 1)), model(dtype, numbers(2 * n * c * pixels, 2));
  Elements uncond(dtype, numbers(2 * n * c * pixels, 3)), next(dtype, n * c * pixels), x0(dtype, n * c * pixels);
  const auto plane = [](Elements& e, int64_t channels) {
    return Planar{e.data(), channels * pixels, pixels, 1, channels, e.dtype};
  };
  const double table[kTableColumns] = {1.2, -0.6, 0.4, 0.5, 0, 0, 0, -3, -2, 1, 1.5, 0};
  const int64_t index = 0, seeds[] = {5, 6};
  int32_t nonfinite[n] = {};
  StepArgs args = {plane(x, c), plane(model, 2 * c), plane(uncond, 2 * c), {}, {}, {}, plane(next, c), plane(x0, c),
                   table, &index, seeds, nonfinite, 1, 1, n, c, pixels, 1, kLearnedRange, 1, 2, 0};
  call("fastdiff_reverse_step", args);
  next.print(), x0.print();
}

void convolve(int64_t dtype, int64_t taps, int64_t tile_h, int64_t tile_w) {
  constexpr int64_t n = 2, h = 9, w = 11, in = 5, out = 18;
  const int64_t panel = reinterpret_cast<int64_t (*)()>(dlsym(library, "fastdiff_conv2d_panel"))();
  Elements weight(dtype, numbers(out * in * taps * taps, 1));
  Elements packed(dtype, (out + panel - 1) / panel * panel * in * taps * taps);
  conv2d::PackArgs pack = {weight.data(), packed.data(), out, in, taps, {in * taps * taps, taps * taps, taps, 1},
                           static_cast<int64_t>(weight.size()), 2};
  call("fastdiff_conv2d_pack", pack);
  Elements x(dtype, numbers(n * h * w * in, 2)), residual(dtype, numbers(n * h * w * out, 3)), y(dtype, n * h * w * out);
  auto bias = numbers(out, 4), embedding = numbers(n * out, 5), affine = numbers(n * 3 * in, 6);
  std::vector<float> moments(n * out * 2);
  conv2d::Args args = {};
  args.x[0] = x.data(), args.weight = packed.data(), args.bias = bias.data(), args.image_bias = embedding.data();
  args.affine = affine.data(), args.residual = residual.data(), args.y = y.data(), args.moments = moments.data();
  args.n = n, args.h = h, args.w = w, args.channels[0] = in, args.out_channels = out;
  args.image_stride[0] = h * w * in, args.bias_stride = out;
  args.taps = taps, args.tile_h = tile_h, args.tile_w = tile_w, args.silu = 1;
  args.dtype = args.weight_dtype = dtype, args.threads = 2;
  call("fastdiff_conv2d", args);
  y.print(), print(moments);
}

void density() {
  constexpr int64_t n = 37;
  const double v = 0.8, a = 1.7, z = 0.4, sv = 0.5;
  std::vector<double> times(n), found(n), slopes(5 * n);
  std::vector<uint8_t> upper(n);
  for (int64_t i = 0; i < n; ++i) times[i] = 0.07 * i, upper[i] = i % 2;
  first_passage::Args args = {{times.data(), &v, &a, &z, &sv}, {1}, upper.data(), 1, found.data(), slopes.data(), n, 1};
  call("fastdiff_first_passage_density", args);
  print(found), print(slopes);
}

void optimise() {
  constexpr int64_t n = 45;
  auto p = numbers(n, 1), g = numbers(n, 2), m = numbers(n, 3), v = numbers(n, 4), ema = numbers(n, 5);
  for (float& x : v) x *= x;
  float taken = 3;
  const auto address = [](auto* to) { return reinterpret_cast<int64_t>(to); };
  const int64_t table[] = {n, 0, address(p.data()), address(g.data()), address(m.data()), address(v.data()),
                           address(&taken), 0, address(ema.data())};
  adamw::Args args = {table, nullptr, 1, 9, adamw::kChunk, 1, 1, kFloat32, kFloat32, 2, 1e-2, 0.9, 0.99, 1e-8, 0.1, {0.25f}};
  call("fastdiff_adamw_ema", args);
  print(p), print(m), print(v), print(ema);
}

}  // namespace

int main(int, char** arguments) {
  library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  part = "philox", philox();
  part = "density", density();
  part = "adamw", optimise();
  for (const int64_t dtype : {kFloat32, kBFloat16}) {
    const bool wide = dtype == kFloat32;
    part = wide ? "norm" : "norm16", norm(dtype, 0), norm(dtype, 1);
    part = wide ? "attention" : "attention16", attend(dtype);
    part = wide ? "step" : "step16", step(dtype);
    part = wide ? "conv" : "conv16";
    convolve(dtype, 1, 1, 1), convolve(dtype, 3, 2, 2), convolve(dtype, 3, 2, 4), convolve(dtype, 3, 4, 4);
  }
}
