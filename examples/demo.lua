-- The demo of `make demo`: a failing script, three fixes tried at the same time from
-- the same image, the winner kept, the rest dropped. The store is a temporary one.

local bough = require "bough"

local function temporary_directory()
  local pipe = assert(io.popen "mktemp -d /tmp/bough-demo.XXXXXX")
  local path = pipe:read "l"
  pipe:close()
  local remove = ("chmod -R u+rwX '%s' 2>/dev/null; rm -rf '%s'"):format(path, path)
  return path, setmetatable({}, { __close = function() os.execute(remove) end })
end

-- Adds up a bill. It has not met a file that ends without a newline, and this one has
-- carriage returns too, which look guilty and are not.
local TOTAL = [[
#!/bin/sh
sum=0
while IFS=, read -r item cents; do
    sum=$((sum + cents))
done < "$1"
echo "$sum"
]]

local TEST = [[
#!/bin/sh
got=$(sh total.sh bill.csv)
if [ "$got" = 450 ]; then
    echo "ok: the bill is 450"
else
    echo "FAIL: expected 450, got '$got'"
    exit 1
fi
]]

local BILL = "apples,120\r\npears,250\r\nfigs,80"

local FIXES = {
  { name = "strip CR in a pipe", script = [[
sum=0
tr -d '\r' < "$1" | while IFS=, read -r item cents; do
    sum=$((sum + cents))
done
echo "$sum"
]] },
  { name = "retry until it reads", script = [[
sum=0
while [ "$sum" != 450 ]; do
    IFS=, read -r item cents < "$1" || true
done
echo "$sum"
]] },
  { name = "let awk add it up", script = [[
awk -F, '{ sub(/\r$/, ""); sum += $2 } END { print sum }' "$1"
]] },
}

local function last_line(text)
  return (text or ""):match "([^\n]*)\n*$"
end

-- One line for an image, then its children below it.
local function draw(image, labels, lead, branch)
  local name = labels[image.uuid] or image.command or image.origin or "?"
  local line = lead .. branch .. name .. (image.tag and (" [%s]"):format(image.tag) or "")
  local outcome = ""
  if image.state == "succeeded" then
    outcome = ("exit %3d  %6.0f ms%s"):format(image.exit_code, image.elapsed_time * 1000,
      image.timed_out and "  timed out" or "")
  end
  -- Box characters take three bytes and one column.
  local columns = utf8.len(line) or #line
  print(("  %s%s %s  %s"):format(line, (" "):rep(44 - columns), image.uuid:sub(1, 6), outcome))
  local children = image:children()
  table.sort(children, function(a, b) return a.created_at < b.created_at end)
  local below = lead .. (branch == "" and "" or branch == "└─ " and "   " or "│  ")
  for i, child in ipairs(children) do
    draw(child, labels, below, i == #children and "└─ " or "├─ ")
  end
end

local home <const>, _ <close> = temporary_directory()
local box <close> = bough.open { home = home .. "/store" }
local labels = {}

print "1. An image from this machine's busybox"
local base = box.images:use("busybox", { on_progress = bough.progress_bar() })
labels[base.uuid] = "busybox"
print("   " .. tostring(base))

print "\n2. A small project in it, with a test"
local s <close> = base:session { cwd = "/project", check = true }
s:apply_files({
  ["/project/total.sh"] = bough.bytes(TOTAL, { mode = "0755" }),
  ["/project/test.sh"] = bough.bytes(TEST, { mode = "0755" }),
  ["/project/bill.csv"] = bough.bytes(BILL),
}, { on_progress = bough.progress_bar() })
labels[s.uuid] = "three files put in place"
s:tag_as "project"
local project = box.images:get "project"
local broken = project:run { "sh", "test.sh", cwd = "/project" }
labels[broken.uuid] = "run the test"
print(("   test.sh: exit %d: %s"):format(broken.exit_code, last_line(broken.stdout)))

print "\n3. Three fixes at the same time, each from the image \"project\""
local attempts = {}
for i, fix in ipairs(FIXES) do
  attempts[i] = function()
    return project:run { "sh", "test.sh", cwd = "/project", timeout = 2,
      files = { ["total.sh"] = bough.bytes(fix.script) } }
  end
end
local tries = bough.all(attempts)
local winner
for i, image in ipairs(tries) do
  labels[image.uuid] = FIXES[i].name
  if image.ok then
    winner = winner or image
  end
  print(("   %-22s %s"):format(FIXES[i].name, image.timed_out and "stopped at its time limit of 2 s"
    or last_line(image.stdout)))
end
assert(winner, "no fix worked")

print "\n4. What there is now"
draw(base, labels, "", "")

print "\n5. Keep the winner, drop the rest"
winner:tag_as "fixed"
s:close()
local dropped = box:gc()
print(("   dropped %d images"):format(dropped.images))
draw(base, labels, "", "")
print "\n   /project/total.sh in \"fixed\":"
print("   " .. box.images:get("fixed"):read "/project/total.sh")
