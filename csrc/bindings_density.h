// What bindings_density.cpp adds to fastdiff._C.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdiff::first_passage {

void add_density(pybind11::module_& m);

}  // namespace fastdiff::first_passage
