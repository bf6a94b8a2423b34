/* A stand-in for libgcc_s.so.1, for the linker alone: its unwinder's names, with libgcc_s.map's versions.

   Rust's std asks for libgcc_s. zig has none, and would put LLVM's unwinder into the extension instead.
   But before CPython 3.14 a daemon thread ends by pthread_exit, which unwinds with the system's
   libgcc_s, and calls the extension's personality routine with a context of libgcc_s. That routine has
   to read it by the same library: LLVM's calls a null pointer. Linked to this file, the extension asks
   for libgcc_s.so.1 by name, as it does when the system's own linker makes it.

   All names that begin with _Unwind_ are here, so that a later Rust that uses more of them gets none from LLVM. Their versions are
   those of GCC's libgcc-std.ver; each is older than glibc 2.17. */

#define EXPORT(name) void name(void) {}

EXPORT(_Unwind_Backtrace)
EXPORT(_Unwind_DeleteException)
EXPORT(_Unwind_FindEnclosingFunction)
EXPORT(_Unwind_Find_FDE)
EXPORT(_Unwind_ForcedUnwind)
EXPORT(_Unwind_GetCFA)
EXPORT(_Unwind_GetDataRelBase)
EXPORT(_Unwind_GetGR)
EXPORT(_Unwind_GetIP)
EXPORT(_Unwind_GetIPInfo)
EXPORT(_Unwind_GetLanguageSpecificData)
EXPORT(_Unwind_GetRegionStart)
EXPORT(_Unwind_GetTextRelBase)
EXPORT(_Unwind_RaiseException)
EXPORT(_Unwind_Resume)
EXPORT(_Unwind_Resume_or_Rethrow)
EXPORT(_Unwind_SetGR)
EXPORT(_Unwind_SetIP)
