--- Debian root file systems as tarballs: one with a C compiler, make and Lua's source for the tests, and one
-- of more than 500 MB, nothing taken out, for the benchmarks.
--
-- Made once per machine by mmdebstrap from the mirrors that this machine's apt uses, and kept below
-- `$BOUGH_TEST_CACHE`, default /var/tmp/bough-test-cache (with the uid behind it where that one belongs to
-- somebody else and holds no tarball).

local lfs = require "lfs"
local scratch = require "spec.support.scratch"

local M = {}

local quote = scratch.quote

-- Bump the number when what is in a tarball changes.
local kinds = {
  small = { name = "debian-gcc-lua-1.tar.zst", include = "gcc,make,libc6-dev,patch", lua = true },
  large = {
    name = "debian-large-1.tar.zst", include = "g++,make,git,python3,perl,vim,gdb,openssh-client,locales",
  },
}

-- The compiler's parts that a C program never needs would be half of the tarball.
local NEEDLESS = "share/doc share/man share/locale share/info lib/*/gconv lib/gcc/*/*/lto1 bin/*lto-dump*"
  .. " lib/*/lib?san.so* lib/gcc/*/*/lib?san* bin/*gold bin/*dwp"

local function lines_of(command)
  local pipe = assert(io.popen(command))
  local lines = {}
  for line in pipe:lines() do lines[#lines + 1] = line end
  pipe:close()
  return lines
end

local function fail(why) error("cannot make the Debian root: " .. why, 0) end

-- This machine's own mirrors, as lines of a sources.list, and the name of the release. Other people's
-- repositories stay out.
local function mirrors()
  local release = lines_of ". /etc/os-release && echo $VERSION_CODENAME"[1]
  local sources, suite, seen = {}, nil, {}
  for _, line in ipairs(lines_of("apt-get indextargets 'Created-By: Packages' --format"
    .. " '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 2>/dev/null")) do
    local origin, uri, name, component = line:match "^([^|]*)|([^|]+)|([^|]+)|([^|]+)$"
    -- before the first `apt-get update` nothing has an origin
    local ours = origin == "Debian"
      or origin and not origin:find "%w" and release and name:find(release, 1, true) == 1
    if ours and component == "main" and not seen[uri .. name] then
      seen[uri .. name] = true
      sources[#sources + 1] = ("deb %s %s main\ndeb-src %s %s main\n"):format(uri, name, uri, name)
      -- bookworm, not bookworm-updates
      if not suite or #name < #suite then suite = name end
    end
  end
  if not suite then fail "apt on this machine knows no Debian mirror" end
  return table.concat(sources), suite
end

local function make(path, kind)
  if not os.execute "command -v mmdebstrap apt-get zstd >/dev/null" then
    fail "mmdebstrap, apt-get or zstd is missing: run 'make deps-test'"
  end
  local sources, suite = mirrors()
  local work = lines_of("mktemp -d " .. quote(path .. ".XXXXXX"))[1]
  if not work then fail("no room in " .. path:match "^(.*)/") end
  local _ <close> = setmetatable({}, { __close = function() scratch.remove(work) end })
  assert(os.execute(("chmod 0755 %s && mkdir -m 1777 %s/tmp"):format(work, work)))
  scratch.file(sources, work .. "/sources.list")
  -- Lua's source comes by the same apt, checked as packages are; unpacked by hand it needs no dpkg-dev.
  local fetch = [[src="$1/usr/src"; mkdir -p "$src/lua" && cd "$src" &&
    APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -q source --download-only lua5.4 &&
    tar -C lua --strip-components=1 --no-same-owner -xzf lua5.4_*.orig.tar.gz && rm -f lua5.4_*]]
  local ok = os.execute(table.concat({
    "cd " .. work, "&& TMPDIR=" .. work .. "/tmp", "timeout -k 10 600", "mmdebstrap", "--variant=essential",
    "--include=" .. kind.include, "--aptopt='APT::Install-Recommends false'",
    "--aptopt='APT::Sandbox::User root'", "--dpkgopt=force-unsafe-io",
    "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr",
    kind.lua and "--customize-hook=" .. quote(fetch) or "",
    kind.lua and "--customize-hook=" .. quote([[cd "$1/usr" && rm -rf ]] .. NEEDLESS) or "",
    suite, "root.tar.zst", "- <sources.list >log 2>&1",
  }, " "))
  if not ok then
    local why -- the first error is the cause of the others
    for line in io.lines(work .. "/log") do
      why = why or line:match "^[EW]: (Failed to fetch.*)" or line:match "^E: (.*)"
    end
    fail(("mmdebstrap for %s: %s"):format(suite, why or "it did not end within 600 s"))
  end
  assert(os.execute(("cd %s && chmod 0644 root.tar.zst && mv root.tar.zst %s"):format(work, quote(path))))
end

-- The cache is used only where nobody else could have put something into it.
local function trusted(path)
  local uid = lfs.symlinkattributes(path, "uid")
  return uid == 0 or uid ~= nil and uid == lfs.attributes("/proc/self", "uid")
end

--- The tarball's path; makes it when it is not there yet.
---@param which "small"|"large"|nil default "small"
---@return string path
---@return number? seconds what making it took
function M.tarball(which)
  local kind = kinds[which or "small"]
  local name = kind.name
  local cache = os.getenv "BOUGH_TEST_CACHE" or "/var/tmp/bough-test-cache"
  local path = cache .. "/" .. name
  if trusted(path) then return path end
  local mine = lfs.attributes("/proc/self", "uid")
  if lfs.symlinkattributes(cache) and lfs.symlinkattributes(cache, "uid") ~= mine then
    cache = cache .. "-" .. mine
    path = cache .. "/" .. name
    if trusted(path) then return path end
  end
  os.execute("mkdir -p -m 0755 " .. quote(cache))
  if not trusted(cache) then fail(cache .. " belongs to somebody else") end
  local lock = assert(io.open(cache .. "/lock", "w"))
  local started = os.time()
  -- lfs.lock is by process and goes with the descriptor: another test run waits for this one
  while not lfs.lock(lock, "w") do
    if os.time() - started > 600 then fail "another test run has been making it for ten minutes" end
    os.execute "sleep 0.2"
  end
  if not trusted(path) then make(path, kind) end
  lock:close()
  return path, os.time() - started
end

return M
