// What g++ -fsanitize=undefined calls when it finds something. Our own instead of libubsan's, so that it ends the
// launch with the kernel, block and thread, and needs no library. The structs are the compiler's, see gcc/ubsan.cc.
#include "block.h"

namespace dl::host {
namespace {

struct Source {
  const char* file;
  uint32_t line, column;
};
struct Type {
  uint16_t kind, information;
  char name[1];  // quoted, as long as it is
};
struct OutOfBounds {
  Source at;
  const Type *array, *index;
};
struct Mismatch {
  Source at;
  const Type* type;
  unsigned char log_alignment, kind;
};

[[noreturn]] void report(const Source& at, const std::string& what) {
  fail(what + " at " + at.file + ":" + std::to_string(at.line) + ":" + std::to_string(at.column));
}

}  // namespace

extern "C" {
void __ubsan_handle_out_of_bounds(OutOfBounds* data, size_t index) {
  report(data->at, "index " + std::to_string(long(index)) + " out of bounds of " + data->array->name);
}
void __ubsan_handle_type_mismatch_v1(Mismatch* data, size_t address) {
  size_t alignment = size_t(1) << data->log_alignment;
  if (address % alignment)
    report(data->at,
           std::string("misaligned access to ") + data->type->name + ", which needs " + std::to_string(alignment));
  report(data->at, std::string("null or bad pointer to ") + data->type->name);
}
#define DL_OVERFLOW(name, text) \
  void __ubsan_handle_##name(Source* data, size_t, size_t) { report(*data, text); }
DL_OVERFLOW(shift_out_of_bounds, "shift by a negative or too large amount")
DL_OVERFLOW(divrem_overflow, "integer division by zero, or overflow")
DL_OVERFLOW(add_overflow, "signed overflow in +")
DL_OVERFLOW(sub_overflow, "signed overflow in -")
DL_OVERFLOW(mul_overflow, "signed overflow in *")
DL_OVERFLOW(negate_overflow, "signed overflow in unary -")
}

}  // namespace dl::host
