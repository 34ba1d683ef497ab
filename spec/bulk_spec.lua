-- Much at once: thousands of small files, and one far larger than memory should ever hold of it.

local bough = require "bough"
local scratch = require "spec.support.scratch"

local COUNT = 10000
local GIB = 1 << 30
local FLAT = 64 -- MiB that the host may grow by: what is in flight, and a table entry for each file

local function tell(...) io.write("# ", string.format(...), "\n") end

local function peak(pid)
  local file = io.open(("/proc/%s/status"):format(pid))
  local status = file and file:read "a" or ""
  if file then file:close() end
  return (tonumber(status:match "VmHWM:%s*(%d+)") or 0) / 1024
end

local function reset_peak(pid)
  local file = io.open(("/proc/%s/clear_refs"):format(pid), "w")
  if file then
    file:write "5"
    file:close()
  end
end

describe("bulk work", function()
  local box, base

  setup(function()
    box = bough.open { home = scratch.dir() .. "/store" }
    base = box.images:use "busybox"
  end)

  teardown(function()
    box:close()
  end)

  -- Runs it and checks that neither host nor keeper has grown with the data.
  local function flat(what, fn)
    local keeper = box:info().keeper_pid
    collectgarbage()
    reset_peak "self"
    reset_peak(keeper)
    local host_before, keeper_before = peak "self", peak(keeper)
    fn()
    local host_after, keeper_after = peak "self", peak(keeper)
    tell("%s: peak MiB of the host %.1f, then %.1f, of the keeper %.1f, then %.1f", what,
      host_before, host_after, keeper_before, keeper_after)
    assert.is_true(host_after - host_before < FLAT, "the host has grown")
    assert.is_true(keeper_after - keeper_before < FLAT, "the keeper has grown")
  end

  it("10,000 small files go in and come out with flat memory", function()
    local dir = scratch.dir()
    scratch.sh(([[mkdir %s/in && cd %s/in && for d in $(seq 100); do mkdir $d; for f in $(seq %d); do
      echo "$d $f" >$d/$f; done; done]]):format(dir, dir, COUNT // 100))
    local image
    flat("10,000 small files in", function() image = base:apply_files { ["/data"] = dir .. "/in" } end)
    assert.equal(COUNT, #image:find { path = "/data", kind = "file" })
    flat("10,000 small files out", function() image:download("/data", dir .. "/out") end)
    scratch.sh(("diff -r %s/in %s/out"):format(dir, dir))
    -- known contents are not copied again
    local store = box:info().home
    local function inodes()
      return tonumber(scratch.sh("du -s --inodes " .. store .. "/blobs"):match "%d+")
    end
    local before = inodes()
    base:apply_files { ["/again"] = dir .. "/in" }
    assert.equal(before, inodes())
  end)

  it("a sparse file of 5 GiB goes in and comes out with flat memory, and stays sparse", function()
    local dir = scratch.dir()
    local path = dir .. "/sparse"
    local file = assert(io.open(path, "w"))
    file:write "begin"
    file:seek("set", 2 * GIB)
    file:write(("middle"):rep(1000))
    file:seek("set", 5 * GIB - 3)
    file:write "end"
    file:close()
    local image
    flat("5 GiB in", function() image = base:apply_files { ["/sparse"] = path } end)
    assert.equal(5 * GIB, image:stat("/sparse").size)
    flat("5 GiB out", function() image:download("/sparse", path .. ".out") end)
    scratch.sh(("cmp %s %s.out"):format(path, path))
    assert.is_true(tonumber(scratch.sh("stat -c %b " .. path .. ".out"):match "%d+") < 2048)
    assert.is_true(tonumber(scratch.sh("du -sk " .. box:info().home .. "/blobs"):match "%d+") < 200 * 1024)
    local bytes = 0
    for chunk in image:stream "/sparse" do
      bytes = bytes + #chunk
      if bytes > 64 << 20 then break end
    end
    assert.is_true(bytes > 64 << 20)
  end)
end)
