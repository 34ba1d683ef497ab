--- A program that the fault tests start, kill, or put on a disk that is no good.
--
--   lua spec/support/fault_child.lua HOME WHAT [arguments]
--
-- It says what it does, a line each; what went wrong is "raised KIND MESSAGE".

io.stdout:setvbuf "line"
io.write("pid ", io.open("/proc/self/stat"):read "n", "\n")

local home, what = arg[1], arg[2]
local bough = require "bough"

local function said(...) io.write(table.concat({ ... }, " "), "\n") end

local function shown(problem)
  if bough.is_error(problem) then return problem.kind .. " " .. tostring(problem) end
  return "plain " .. tostring(problem)
end

local function try(name, fn)
  local done, problem = pcall(fn)
  said(name, done and "ok" or "raised " .. shown(problem))
  return done, problem
end

local doings = {}

-- The mix, until somebody kills us.
function doings.mix(source, seed)
  math.randomseed(math.tointeger(seed))
  local mix = require "spec.support.fault_mix"
  local box = bough.open { home = home }
  said("keeper", box:info().keeper_pid)
  mix.run(box, source, "t", said)
end

-- A chain of tagged runs and some gc, then done: nothing of it may be lost.
function doings.hammer(name, count)
  local box <close> = bough.open { home = home }
  local s <close> = box:session "base"
  for i = 1, count do
    local tag = ("%s-%d"):format(name, i)
    s:run(("echo %s >>/data/log"):format(tag), { check = true })
    s:tag_as(tag)
    said("tag", tag, s.uuid)
    s:run "echo nobody wants this >/data/more"
    s:rollback()
    if i % 7 == 0 then box:gc() end
    if i % 5 == 0 then s:checkout "base" end
  end
  said "done"
end

-- Whether it opens at all.
function doings.open(keeper)
  local opened, box = pcall(bough.open, { home = home, keeper = keeper })
  if not opened then return said("open raised", shown(box)) end
  said "open ok"
  try("use", function() box.images:use "busybox" end)
  try("run", function() box.images:use "busybox":run("true", { check = true }) end)
  box:close()
end

-- On a small disk: fills it in each of the ways there are, and then works on.
function doings.fill(source)
  local box <close> = bough.open { home = home }
  local base = box.images:use "busybox"
  local count = #box.images:list()
  local done, image = pcall(base.run, base, "head -c 100000000 /dev/zero >/big; echo status $?")
  said("run", done and "said " .. image.stdout:gsub("\n", "") .. " " .. image.stderr:gsub("\n", " ")
    or "raised " .. shown(image))
  if done then
    box.images:remove(image.uuid)
    box:gc()
  end
  try("import", function() box.images:import(source) end)
  try("archive", function() box.images:import(source .. ".tar") end)
  said("images", #box.images:list() - count)
  try("again", function()
    assert(base:run("echo small >/small; cat /small", { check = true }):read "/small" == "small\n")
  end)
end

local ok, problem = pcall(doings[what], table.unpack(arg, 3))
if not ok then
  said("raised", shown(problem))
  os.exit(1)
end
