// The decision model's log-density for NumPy's arrays and Python's numbers, past PyTorch, whose way costs the time of
// hundreds of trials. Whatever is not plainly right is declined with None: then PyTorch's way computes it, or says what
// is wrong (fastdiff/decision/density.py).
#include "bindings_density.h"

#include <dlfcn.h>
#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "common/first_passage_density.h"

namespace py = pybind11;

namespace fastdiff::first_passage {
namespace {

constexpr Py_ssize_t kMost = 16383;  // trials: from twice the kernel's kPerThread on, PyTorch's way has more threads
constexpr int kNamed = 10, kRequired = 4;
constexpr const char* kNames[kNamed] = {"rt", "choice", "v", "a", "z", "t0", "s", "sv", "sz", "st0"};

void (*kernel)(const Args*) = nullptr;

// A buffer of one dimension.
class View {
 public:
  explicit View(PyObject* from) {
    if (!PyObject_CheckBuffer(from)) return;
    open_ = PyObject_GetBuffer(from, &view_, PyBUF_STRIDED_RO | PyBUF_FORMAT) == 0;
    if (!open_) PyErr_Clear();
  }
  ~View() {
    if (open_) PyBuffer_Release(&view_);
  }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  // Its elements' code of Python's struct module; 0 if this is none or its elements are not the machine's own.
  char kind() const { return open_ && view_.ndim == 1 && std::strlen(view_.format) == 1 ? view_.format[0] : 0; }
  Py_ssize_t size() const { return view_.shape[0]; }

  template <class T>
  T at(Py_ssize_t i) const {
    T value;
    std::memcpy(&value, static_cast<const char*>(view_.buf) + i * view_.strides[0], sizeof value);
    return value;
  }

 private:
  Py_buffer view_;
  bool open_ = false;
};

std::optional<double> number(PyObject* from) {
  if (!PyFloat_Check(from) && !PyLong_Check(from)) return {};
  const double value = PyFloat_AsDouble(from);
  if (PyErr_Occurred()) PyErr_Clear();  // an integer beyond all doubles
  else if (std::isfinite(value)) return value;
  return {};
}

struct Model {
  double v, a, z, t0, s, sv;
};

// As fastdiff/decision/parameters.py requires them; neither the start nor t0 varies.
std::optional<Model> model(PyObject* const* given) {
  std::array<double, kNamed> x = {0, 0, 0, 0, 0.5, 0, 1, 0, 0, 0};
  for (int i = 2; i < kNamed; ++i) {
    if (!given[i]) continue;
    const auto value = number(given[i]);
    if (!value) return {};
    x[i] = *value;
  }
  const auto [rt, choice, v, a, z, t0, s, sv, sz, st0] = x;
  const bool fine = a > 0 && z > 0 && z < 1 && t0 >= 0 && s > 0 && sv >= 0 && sz == 0 && st0 == 0;
  return fine ? std::optional<Model>({v / s, a / s, z, t0, s, sv / s}) : std::nullopt;
}

// Times since the walk began. False: not all are finite.
bool read_times(const View& from, double t0, std::vector<double>& to) {
  double zero = 0;  // times what is not finite, NaN
  for (size_t i = 0; i < to.size(); ++i) {
    const double t = from.at<double>(i);
    zero += t * 0;
    to[i] = t - t0;
  }
  return zero == 0;
}

// 1 for the upper boundary, 0 for the lower one. False: there are others.
template <class T>
bool read_choices_as(const View& from, std::vector<uint8_t>& to) {
  bool fine = true;
  for (size_t i = 0; i < to.size(); ++i) {
    const T choice = from.at<T>(i);
    to[i] = choice == T(1);
    fine &= choice == T(0) || choice == T(1);
  }
  return fine;
}

bool read_choices(PyObject* given, std::vector<uint8_t>& to) {
  if (const auto one = number(given)) {
    std::fill(to.begin(), to.end(), *one == 1);
    return *one == 0 || *one == 1;
  }
  const View from(given);
  const char kind = from.kind();
  if (!kind || from.size() != static_cast<Py_ssize_t>(to.size())) return false;
  if (std::strchr("?bB", kind)) return read_choices_as<uint8_t>(from, to);
  if (kind == 'i') return read_choices_as<int>(from, to);
  if (kind == 'l') return read_choices_as<long>(from, to);
  if (kind == 'f') return read_choices_as<float>(from, to);
  return kind == 'd' && read_choices_as<double>(from, to);
}

// By v, a, z, t0 and sv in the user's units, from those by t, v / s, a / s, z and sv / s.
void to_user(double* slopes, Py_ssize_t n, double s) {
  double *by_t = slopes, *by_v = by_t + n, *by_a = by_v + n, *by_z = by_a + n, *by_sv = by_z + n;
  for (Py_ssize_t i = 0; i < n; ++i) {
    const double late = -by_t[i];
    by_t[i] = by_v[i] / s, by_v[i] = by_a[i] / s, by_a[i] = by_z[i], by_z[i] = late, by_sv[i] /= s;
  }
}

// -> the log-density [N], with the slopes a tuple of it and them [5, N], or None.
py::object compute(PyObject* const* given, bool slopes) {
  const auto m = model(given);
  if (!kernel || !m) return py::none();
  const View rt(given[0]);
  if (rt.kind() != 'd' || rt.size() == 0 || rt.size() > kMost) return py::none();
  const Py_ssize_t n = rt.size();
  std::vector<double> times(n);
  std::vector<uint8_t> upper(n);
  if (!read_times(rt, m->t0, times) || !read_choices(given[1], upper)) return py::none();
  py::array_t<double> found(n);
  Args args = {};
  const double* parameters[kParameterCount] = {times.data(), &m->v, &m->a, &m->z, &m->sv};
  std::copy_n(parameters, kParameterCount, args.parameters);
  args.strides[kTime] = 1;
  args.upper = upper.data(), args.upper_stride = 1;
  args.log_density = found.mutable_data();
  args.count = n, args.threads = 1;
  if (!slopes) return kernel(&args), found;
  py::array_t<double> by({static_cast<Py_ssize_t>(kParameterCount), n});
  args.slopes = by.mutable_data();
  kernel(&args);
  to_user(args.slopes, n, m->s);
  return py::make_tuple(found, by);
}

// Positional and named arguments in the order of kNames. False: too many, too few, unknown, or twice.
bool sort(PyObject* const* args, Py_ssize_t positional, PyObject* names, PyObject** given) {
  if (positional > kNamed) return false;
  std::copy_n(args, positional, given);
  for (Py_ssize_t k = 0; names && k < PyTuple_GET_SIZE(names); ++k) {
    PyObject* const name = PyTuple_GET_ITEM(names, k);
    const auto known = std::find_if(kNames, kNames + kNamed, [name](const char* one) {
      return PyUnicode_CompareWithASCIIString(name, one) == 0;
    });
    if (known == kNames + kNamed || given[known - kNames]) return false;
    given[known - kNames] = args[positional + k];
  }
  return std::all_of(given, given + kRequired, [](PyObject* one) { return one; });
}

// CPython's own calling convention: pybind11's takes as long as a subject's trials.
template <bool slopes>
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t positional, PyObject* names) {
  PyObject* given[kNamed] = {};
  try {
    return (sort(args, positional, names, given) ? compute(given, slopes) : py::none()).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

bool open(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return false;
  const auto size = reinterpret_cast<size_t (*)()>(dlsym(library, "fastdiff_first_passage_density_args_size"));
  if (!size || size() != sizeof(Args)) return false;
  kernel = reinterpret_cast<void (*)(const Args*)>(dlsym(library, "fastdiff_first_passage_density"));
  return kernel;
}

template <bool slopes>
PyMethodDef method(const char* name, const char* says) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call<slopes>)),
          METH_FASTCALL | METH_KEYWORDS, says};
}

}  // namespace

void add_density(py::module_& m) {
  m.def("open_density", &open, py::arg("path"), "Takes the kernel of a CPU library; false if it has none that fits.");
  static PyMethodDef methods[] = {
      method<false>("log_pdf", "rt, choice and the model -> the log-density, or None: not a call for here."),
      method<true>("log_pdf_and_slopes", "The same with its derivatives by v, a, z, t0 and sv, [5, N]."),
      {}};
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}

}  // namespace fastdiff::first_passage
