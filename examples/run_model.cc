// Run a compiled model with TVM's runtime alone: ./run_model ./model.so 3 224 224 1000 < images.f32 > logits.f32
// images: float32, scaled as in training: pixels / 255 for networks of `apq-deploy export`.
// Build, with P=$(python -c "import tvm, os; print(os.path.dirname(tvm.__file__))"):
//   g++ -O2 run_model.cc -o run_model $(tvm-ffi-config --cxxflags --ldflags --libs) -L$P/lib -Wl,--no-as-needed
//       -ltvm_runtime -ldl      and run with LD_LIBRARY_PATH=$P/lib:$P/../tvm_ffi/lib
#include <dlfcn.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>

#include <cstdio>
#include <cstdlib>

namespace ffi = tvm::ffi;

struct Aligned {
  void AllocData(DLTensor* t) { t->data = std::aligned_alloc(64, (ffi::GetDataSize(*t) + 63) / 64 * 64); }
  void FreeData(DLTensor* t) { std::free(t->data); }
};

int main(int argc, char** argv) {
  if (argc != 6) return std::fprintf(stderr, "usage: run_model ./model.so channels height width classes\n"), 2;
  void* library = dlopen(argv[1], RTLD_LAZY);
  auto supported = library ? reinterpret_cast<int (*)()>(dlsym(library, "apq_deploy_supported")) : nullptr;
  if (!supported || !supported()) return std::fprintf(stderr, "this CPU cannot run %s\n", argv[1]), 1;
  ffi::Module machine = ffi::Module::LoadFromFile(argv[1])->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  const int cpu = 1, pooled = 2;
  machine->GetFunction("vm_initialization").value()(cpu, 0, pooled);
  int64_t shape[] = {1, std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4])};
  ffi::Tensor image = ffi::Tensor::FromNDAlloc(Aligned(), ffi::ShapeView(shape, 4), {kDLFloat, 32, 1}, {kDLCPU, 0});
  const size_t floats = shape[1] * shape[2] * shape[3];
  while (std::fread(image.data_ptr(), 4, floats, stdin) == floats) {
    ffi::Tensor logits = machine->GetFunction("main").value()(image).cast<ffi::Tensor>();
    std::fwrite(logits.data_ptr(), 4, std::atoll(argv[5]), stdout);
  }
  return 0;
}
