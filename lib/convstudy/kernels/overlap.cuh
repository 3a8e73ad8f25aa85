// SPDX-License-Identifier: MIT
// A kernel's begin laid over the end of the one before it (programmatic dependent launch, from
// sm_90 on; a name in CUDA's documents: griddepcontrol).
//
// A kernel that includes this is launched early, and must call `wait_for_others` before it reads
// or writes anything that another kernel touches; what it prepares of its own comes before. The
// wait ends when all kernels before have ended: so no kernel may leave it out, not even one
// without inputs.
#if !defined(CONVSTUDY_EMULATOR) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void wait_for_others()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
// From here on the next kernel may be launched, as blocks of this one leave room for its own.
__device__ __forceinline__ void let_others_begin()
{
    asm volatile("griddepcontrol.launch_dependents;");
}
#else
__device__ __forceinline__ void wait_for_others() {}
__device__ __forceinline__ void let_others_begin() {}
#endif
