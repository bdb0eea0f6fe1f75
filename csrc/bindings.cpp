// The only file that knows torch and Python. Everything it calls takes raw pointers and sizes, and
// a range of rows or tiles, which at::parallel_for hands out to threads here.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "frequency_update.h"
#include "pixel_format.h"
#include "qk_norm_rope.h"

namespace py = pybind11;

namespace {

constexpr std::int64_t kPixelsPerTask = 16384;  // below this, starting a thread costs more

std::int64_t rows_per_task(std::int64_t width) {
  return std::max<std::int64_t>(1, kPixelsPerTask / std::max<std::int64_t>(1, width));
}

void check(const at::Tensor& tensor, const char* name, at::ScalarType dtype, std::int64_t dims) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == dtype &&
                  tensor.dim() == dims && tensor.is_contiguous(),
              name, " must be a contiguous CPU tensor of ", dims, " dimensions and dtype ", dtype);
}

at::Tensor unpack_frames(const at::Tensor& frames) {
  check(frames, "frames", at::kByte, 4);
  TORCH_CHECK(frames.size(3) == 3, "frames must have 3 channels, got ", frames.size(3));
  const std::int64_t count = frames.size(0), height = frames.size(1), width = frames.size(2);
  at::Tensor picture = at::empty({count, 3, height, width}, frames.options().dtype(at::kFloat));
  const std::uint8_t* in = frames.const_data_ptr<std::uint8_t>();
  float* out = picture.mutable_data_ptr<float>();
  at::parallel_for(0, count * height, rows_per_task(width), [&](auto begin, auto end) {
    psssr::unpack_frames(in, out, height, width, begin, end);
  });
  return picture;
}

at::Tensor pack_frames(const at::Tensor& picture, bool truncate) {
  check(picture, "picture", at::kFloat, 4);
  TORCH_CHECK(picture.size(1) == 3, "picture must have 3 channels, got ", picture.size(1));
  const std::int64_t count = picture.size(0), height = picture.size(2), width = picture.size(3);
  at::Tensor frames = at::empty({count, height, width, 3}, picture.options().dtype(at::kByte));
  const float* in = picture.const_data_ptr<float>();
  std::uint8_t* out = frames.mutable_data_ptr<std::uint8_t>();
  at::parallel_for(0, count * height, rows_per_task(width), [&](auto begin, auto end) {
    psssr::pack_frames(in, out, height, width, truncate, begin, end);
  });
  return frames;
}

// Writing fresh memory page by page would take longer than the arithmetic, so large tensors ask
// Linux for huge pages, which it may refuse. Every byte of them is going to be written anyway.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor tensor = at::empty(sizes, options);
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kHuge = 2 << 20;
  const auto data = reinterpret_cast<std::uintptr_t>(tensor.mutable_data_ptr());
  const std::uintptr_t begin = (data + kHuge - 1) / kHuge * kHuge;
  const std::uintptr_t end = (data + tensor.nbytes()) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return tensor;
}

template <class Pixel>
std::tuple<at::Tensor, at::Tensor> fuse(const at::Tensor& consistent, const at::Tensor& sharp,
                                        const psssr::FrequencyUpdate& settings, bool detail) {
  const std::int64_t count = consistent.size(0);
  const std::int64_t height = consistent.size(2), width = consistent.size(3);
  const at::TensorOptions options = consistent.options();
  at::Tensor fused = empty(consistent.sizes(), options);
  at::Tensor change = empty({detail ? count : 0, height, width}, options.dtype(at::kFloat));
  const psssr::FrequencyUpdateFrames<Pixel> frames{
      consistent.const_data_ptr<Pixel>(),
      sharp.const_data_ptr<Pixel>(),
      fused.mutable_data_ptr<Pixel>(),
      detail ? change.mutable_data_ptr<float>() : nullptr,
      count,
      height,
      width};
  const std::int64_t tiles = psssr::frequency_update_tiles(count, height, width);
  at::parallel_for(0, tiles, 1, [&](auto begin, auto end) {
    psssr::frequency_update(frames, settings, begin, end);
  });
  return {fused, change};
}

// Returns the picture and the detail map, which is empty unless asked for. The pictures are fp32
// in [0, 1] or uint8; the detail map is fp32 in units of white.
std::tuple<at::Tensor, at::Tensor> frequency_update(const at::Tensor& consistent,
                                                    const at::Tensor& sharp,
                                                    const at::Tensor& columns,
                                                    const at::Tensor& rows, double strength,
                                                    bool literal, std::int64_t border, double eps,
                                                    bool detail) {
  const bool bytes = consistent.scalar_type() == at::kByte;
  check(consistent, "consistent", bytes ? at::kByte : at::kFloat, 4);
  check(sharp, "sharp", consistent.scalar_type(), 4);
  TORCH_CHECK(consistent.size(1) == 3 && consistent.sizes() == sharp.sizes(),
              "consistent and sharp must be [T, 3, H, W] alike, got ", consistent.sizes(), " and ",
              sharp.sizes());
  for (const at::Tensor& taps : {columns, rows}) {
    check(taps, "columns and rows", at::kFloat, 2);
    TORCH_CHECK(taps.size(0) == psssr::kLowPassRank && taps.size(1) == psssr::kLowPassTaps,
                "columns and rows must be [4, 19], got ", taps.sizes());
  }
  const psssr::FrequencyUpdate settings{columns.const_data_ptr<float>(),
                                        rows.const_data_ptr<float>(),
                                        static_cast<float>(strength),
                                        literal,
                                        border,
                                        static_cast<float>(eps)};
  return bytes ? fuse<std::uint8_t>(consistent, sharp, settings, detail)
               : fuse<float>(consistent, sharp, settings, detail);
}

// x is [batch, tokens, dim] in float or bfloat16, channels adjacent; the tables are both given or
// both not.
at::Tensor qk_norm_rope(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& cosines,
                        const std::optional<at::Tensor>& sines, std::int64_t heads, double eps) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK(x.device().is_cpu() && x.dim() == 3 && x.stride(2) == 1 &&
                  (dtype == at::kFloat || dtype == at::kBFloat16),
              "x must be a CPU tensor [batch, tokens, dim] of float or bfloat16, channels adjacent");
  check(weight, "weight", dtype, 1);
  const std::int64_t batch = x.size(0), tokens = x.size(1), dim = x.size(2);
  TORCH_CHECK(weight.size(0) == dim && heads > 0 && dim % (2 * heads) == 0,
              "dim must be that of weight and a multiple of 2 * heads");
  TORCH_CHECK(cosines.has_value() == sines.has_value(), "give both tables or none");
  for (const auto& table : {cosines, sines}) {
    if (!table) continue;
    check(*table, "a table", at::kFloat, 2);
    TORCH_CHECK(table->size(0) == tokens && table->size(1) == dim / heads / 2,
                "a table must be [tokens, dim / heads / 2]");
  }
  at::Tensor out = at::empty({batch, tokens, heads, dim / heads}, x.options());
  const psssr::NormRope settings{tokens,
                                 dim,
                                 heads,
                                 x.stride(0),
                                 x.stride(1),
                                 cosines ? cosines->const_data_ptr<float>() : nullptr,
                                 sines ? sines->const_data_ptr<float>() : nullptr,
                                 static_cast<float>(eps)};
  const auto run = [&](const auto* from, const auto* gain, auto* to) {
    at::parallel_for(0, batch * tokens, rows_per_task(dim), [&](auto begin, auto end) {
      psssr::qk_norm_rope(from, gain, to, settings, begin, end);
    });
  };
  if (dtype == at::kFloat) {
    run(x.const_data_ptr<float>(), weight.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  } else {
    run(static_cast<const psssr::BFloat16*>(x.const_data_ptr()),
        static_cast<const psssr::BFloat16*>(weight.const_data_ptr()),
        static_cast<psssr::BFloat16*>(out.mutable_data_ptr()));
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "CPU kernels of psssr_fast; the ops are registered in psssr_fast.ops.";
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("unpack_frames", &unpack_frames, py::arg("frames"), without_gil);
  m.def("pack_frames", &pack_frames, py::arg("picture"), py::arg("truncate"), without_gil);
  m.def("frequency_update", &frequency_update, py::arg("consistent"), py::arg("sharp"),
        py::arg("columns"), py::arg("rows"), py::arg("strength"), py::arg("literal"),
        py::arg("border"), py::arg("eps"), py::arg("detail"), without_gil);
  m.def("qk_norm_rope", &qk_norm_rope, py::arg("x"), py::arg("weight"), py::arg("cosines"),
        py::arg("sines"), py::arg("heads"), py::arg("eps"), without_gil);
}
