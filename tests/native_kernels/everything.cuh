// A "kernel" with every kind of parameter, for the tests of the native launcher. g++ compiles it as a plain function, and
// fake_cuda.cpp calls it at the launch; it writes down what it got.
#pragma once
#include <string>

void record(const std::string& event);

struct Shape {
  int rows, columns;
};

template <typename T>
__global__ void everything(T* y, const T* x, const unsigned char* mask, const void* any, int i, unsigned u, long long l,
                           unsigned long long ul, float f, Shape shape) {
  auto text = [](auto... values) { return ((std::to_string(values) + " ") + ...); };
  auto at = [](const void* pointer) { return reinterpret_cast<size_t>(pointer); };
  record("everything " + text(at(y), at(x), at(mask), at(any), i, u, l, ul, f, shape.rows, shape.columns));
}
