--- The leak ledger: what this process and this machine hold on our behalf.
--
-- A snapshot is a set of lines, one per descriptor, child, keeper, mount, control
-- group and temporary directory. What is in a later snapshot and not in the
-- earlier one has leaked, once things that end by themselves had time to end.

local lfs = require "lfs"
local system = require "system"

local ledger = {}

local function read_file(path)
  local file = io.open(path, "rb")
  if not file then
    return nil
  end
  local text = file:read "a"
  file:close()
  return text
end

local function entries(path)
  local ok, iterate, state = pcall(lfs.dir, path)
  if not ok then
    return function() end
  end
  return function()
    local name
    repeat
      name = iterate(state)
    until name ~= "." and name ~= ".."
    return name
  end
end

local function self_pid()
  return (read_file "/proc/self/stat" or "0"):match "^%d+"
end

local function add_fds(set)
  -- Read to the end first: the descriptor of the walk itself is in the list.
  local numbers = {}
  for name in entries "/proc/self/fd" do
    numbers[#numbers + 1] = name
  end
  for _, number in ipairs(numbers) do
    local target = lfs.symlinkattributes("/proc/self/fd/" .. number, "target")
    if target then
      set["descriptor " .. number .. " -> " .. target] = true
    end
  end
end

-- Children of ours by any name; keepers of ours, which are nobody's children but
-- name their owner and a store below `dir`; and sandboxes that have outlived their keeper.
local function add_processes(set, with_children, dir)
  local own = self_pid()
  local owner = "--owner\0" .. own .. "-"
  for pid in entries "/proc" do
    local stat = pid:find "^%d" and read_file("/proc/" .. pid .. "/stat")
    local comm, state, parent = (stat or ""):match "^%d+ %((.*)%) (%a) (%d+)"
    if comm and state ~= "Z" or parent == own then
      local line = ("process %s (%s)"):format(pid, comm)
      if parent == own then
        set[line] = with_children
      elseif comm == "bough-init" then
        set[line .. " without its keeper"] = parent == "1" or nil
      elseif comm:find "^bough%-" then
        local command = read_file("/proc/" .. pid .. "/cmdline") or ""
        set[line] = command:find(owner, 1, true) ~= nil
          or (dir and command:find(dir, 1, true) ~= nil) or nil
      end
    end
  end
end

local function add_mounts(set, dir)
  for line in (read_file "/proc/self/mountinfo" or ""):gmatch "[^\n]+" do
    if line:find("bough", 1, true) or (dir and line:find(dir, 1, true)) then
      set["mount " .. (line:match "^%S+ %S+ %S+ %S+ (%S+)" or line)] = true
    end
  end
end

-- A group carries the pid of its keeper; one whose keeper lives is in use, by us (then the
-- keeper is in the ledger) or by somebody else.
local function add_cgroups(set, path, depth)
  for name in entries(path) do
    local full = path .. "/" .. name
    if lfs.symlinkattributes(full, "mode") == "directory" then
      local pid = name:match "bough%-(%d+)"
      if name:find("bough", 1, true) and not (pid and read_file("/proc/" .. pid .. "/stat")) then
        set["control group " .. full] = true
      end
      if depth > 0 then
        add_cgroups(set, full, depth - 1)
      end
    end
  end
end

--- What there is now.
--- @param opts table? `outside`: leave out this process's own descriptors and children;
---   `dir`: the tests' temporary directory, default `$TMPDIR` when the runner has set it
--- @return table set of lines
function ledger.snapshot(opts)
  opts = opts or {}
  local set = {}
  local dir = opts.dir or (os.getenv "BOUGH_SPEC" and os.getenv "TMPDIR")
  if not opts.outside then
    add_fds(set)
  end
  -- The runner gives each file a directory with `tmp` in it, and HOME beside that.
  add_processes(set, not opts.outside or nil, dir and dir:gsub("/tmp$", "/"))
  add_mounts(set, dir)
  add_cgroups(set, "/sys/fs/cgroup", 4)
  if dir then
    for name in entries(dir) do
      set["temporary file " .. dir .. "/" .. name] = true
    end
  end
  return set
end

--- What has leaked since `before`; looks again until there is nothing, for at most two seconds,
--- because a keeper that lost its socket needs a moment to go.
--- @return table sorted array of lines
function ledger.leaks(before, opts)
  local until_ = system.monotime() + 2
  while true do
    if not (opts and opts.outside) then
      collectgarbage()
      collectgarbage()
    end
    local lines = {}
    for line in pairs(ledger.snapshot(opts)) do
      if not before[line] then
        lines[#lines + 1] = line
      end
    end
    if #lines == 0 or system.monotime() > until_ then
      table.sort(lines)
      return lines
    end
    system.sleep(0.02)
  end
end

return ledger
