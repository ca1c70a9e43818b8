// ldmatrix and mma.sync as the PTX ISA defines them (sections "Matrix fragments for mma.m16n8k*" and "ldmatrix").
// In a fragment, lane = 4 * row + column group: `row` below is lane / 4, `pair` is lane % 4.
#include <immintrin.h>

#include <cstring>

#include "block.h"
#include "check.h"

namespace dl::host {
namespace {

struct Load {
  unsigned* fragment;
  int count;
  bool transposed;
  const char* row;  // lane 8 m + r holds the address of row r of matrix m
};

void require_all(Thread* lanes, unsigned who) {
  if (who != DL_ALL_LANES)
    fail(std::string(lanes[__builtin_ctz(who)].waits_for) +
         " needs all 32 lanes of the warp; some have ended or do not exist");
}

void run_load(Thread* lanes, unsigned who) {
  require_all(lanes, who);
  auto load = [&](int lane) -> Load& { return *static_cast<Load*>(lanes[lane].operands); };
  int count = load(0).count;
  for (int i = 0; i < 8 * count; ++i) {
    const char* row = load(i).row;
    if (reinterpret_cast<size_t>(row) % 16 || size_t(row - own_shared()) >= kArenaBytes)
      fail("ldmatrix (" + code_position(lanes[i].pc) + "): lane " + std::to_string(i) +
           " gives a row that is not 16 aligned bytes of shared memory");
    check::read(row, 16, lanes[i].pc, lanes[i]);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < count; ++m) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        int row = lane / 4, column = lane % 4 * 2 + i;
        if (load(lane).transposed) std::swap(row, column);
        memcpy(&pair[i], load(8 * m + row).row + 2 * column, 2);
      }
      memcpy(&load(lane).fragment[m], pair, 4);
    }
}

struct Multiply {
  Input type;
  int k;
  float* c;
  const unsigned *a, *b;
};

float half_to_float(unsigned bits) {
#ifdef __F16C__
  return _cvtsh_ss(static_cast<unsigned short>(bits));
#else
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#endif
}

float from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Elements 2 * register + {0, 1} of a 16-bit fragment, or element `register` of a tf32 one.
float element(Input type, const unsigned* fragment, int i) {
  if (type == Input::tf32) return from_bits(fragment[i] & ~0x1fffu);  // the hardware does not read the last 13 bits
  return from_16_bits(type, fragment[i / 2] >> i % 2 * 16 & 0xffff);
}

void run_mma(Thread* lanes, unsigned who) {
  require_all(lanes, who);
  const Input type = static_cast<Multiply*>(lanes[0].operands)->type;
  const int k = static_cast<Multiply*>(lanes[0].operands)->k;
  const bool wide = type == Input::tf32;  // one element in a register, not two
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Multiply& m = *static_cast<Multiply*>(lanes[lane].operands);
    const int row = lane / 4, pair = lane % 4;
    // Registers of A: (row, first columns), (row + 8, first), (row, last), (row + 8, last); of B: (first rows), (last).
    for (int r = 0; r < (wide ? 4 : k / 4); ++r)
      for (int i = 0; i < (wide ? 1 : 2); ++i)
        a[row + r % 2 * 8][wide ? pair + r / 2 * 4 : 2 * pair + i + r / 2 * 8] =
            element(type, m.a, wide ? r : 2 * r + i);
    for (int r = 0; r < (wide ? 2 : k / 8); ++r)
      for (int i = 0; i < (wide ? 1 : 2); ++i)
        b[wide ? pair + r * 4 : 2 * pair + i + r * 8][row] = element(type, m.b, wide ? r : 2 * r + i);
    for (int i = 0; i < 4; ++i) c[row + i / 2 * 8][2 * pair + i % 2] = m.c[i];
  }
  for (int i = 0; i < 16; ++i)
    for (int p = 0; p < k; ++p)
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][p] * b[p][j];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<Multiply*>(lanes[lane].operands)->c[i] = c[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

}  // namespace

float from_16_bits(Input type, unsigned bits) {
  return type == Input::half ? half_to_float(bits) : from_bits(bits << 16);
}

void load_matrix(unsigned* fragment, int count, bool transposed, const void* row) {
  Load load{fragment, count, transposed, static_cast<const char*>(row)};
  static const char* const kNames[] = {"", "ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"};
  warp_operation(kNames[count], DL_ALL_LANES, &load, &run_load, DL_RETURN_ADDRESS);
}

void mma(Input type, int k, float* c, const unsigned* a, const unsigned* b) {
  Multiply multiply{type, k, c, a, b};
  warp_operation("mma", DL_ALL_LANES, &multiply, &run_mma, DL_RETURN_ADDRESS);
}

}  // namespace dl::host
