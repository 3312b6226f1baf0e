# ckptd_library / ckptd_executable / ckptd_test: add_library and friends with the project's warnings
# and sanitizers. Generated and third-party code does not go through them.

add_library(ckptd_flags INTERFACE)
target_compile_options(ckptd_flags INTERFACE -Wall -Wextra -Wshadow -Werror -Wno-unused-parameter)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  target_compile_options(ckptd_flags INTERFACE -Wthread-safety)
else()
  # g++ 12 sees overlapping copies in std::string where there are none (GCC bug 105651).
  target_compile_options(ckptd_flags INTERFACE -Wno-restrict)
endif()
target_include_directories(ckptd_flags INTERFACE ${CMAKE_SOURCE_DIR})

# Debian's libraries come from g++ 12, whose names for templates clang 18 and later mangle otherwise.
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 18)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fclang-abi-compat=17>)
endif()

# Fuzzing wants every fault to be seen. Coverage is measured in our own code alone: what the fuzzer
# learns about generated code tells it nothing. Less optimised, for the build is most of a short run.
if(CKPTD_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "CKPTD_FUZZ needs Clang, for libFuzzer")
  endif()
  add_compile_options(-O1 -g1)
  set(CKPTD_SANITIZE "address")
  target_compile_options(ckptd_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# Sanitizers reach generated code too, so that no report comes from half-instrumented objects. Not
# "vptr": it asks the kernel through a pipe what it may read, and reports a fault where there are no
# descriptors left, as some of our tests have it.
if(CKPTD_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(CKPTD_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(CKPTD_SANITIZE)
  message(FATAL_ERROR "CKPTD_SANITIZE is '${CKPTD_SANITIZE}': use address, thread or nothing")
endif()

# ckptd_precompiled(NAME HEADERS ... DEPS ...): headers that take longer to parse than all that
# includes them. Every target below a folder whose CKPTD_PRECOMPILED names them has them; sources
# include what they use all the same, and clang-tidy reads them without. Only for Clang, with which
# we build all day.
function(ckptd_precompiled name)
  cmake_parse_arguments(ARG "" "" "HEADERS;DEPS" ${ARGN})
  set(CKPTD_PRECOMPILED "")
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/${name}.cc "")
  ckptd_library(${name} SOURCES ${CMAKE_CURRENT_BINARY_DIR}/${name}.cc DEPS ${ARG_DEPS})
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_precompile_headers(${name} PRIVATE ${ARG_HEADERS})
    # The same bytes each time, for ccache.
    target_compile_options(${name} PRIVATE "SHELL:-Xclang -fno-pch-timestamp")
  endif()
endfunction()

function(ckptd_reuse_precompiled name)
  if(CKPTD_PRECOMPILED AND CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_precompile_headers(${name} REUSE_FROM ${CKPTD_PRECOMPILED})
    # As the headers are; of executables CMake says -fPIE.
    target_compile_options(${name} PRIVATE -fPIC)
  endif()
endfunction()

function(ckptd_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE $<BUILD_INTERFACE:ckptd_flags>)
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
  ckptd_reuse_precompiled(${name})
endfunction()

function(ckptd_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} ckptd_flags)
  ckptd_reuse_precompiled(${name})
endfunction()

function(ckptd_test name)
  ckptd_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE GTest::gtest_main GTest::gmock)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  include(GoogleTest)
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()
